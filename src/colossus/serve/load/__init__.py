"""Load tests of any server with an OpenAI-compatible API: arrivals, a light client, and what they came to."""
