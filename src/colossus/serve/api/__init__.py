"""The OpenAI API over any backend: bodies in, prompts and sampling out, tokens back as text, whole or as server-sent events."""
