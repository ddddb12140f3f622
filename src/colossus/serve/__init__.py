"""Real serving: the engine (batching, paged cache, sampling), its process, the router before it, and the OpenAI API."""
