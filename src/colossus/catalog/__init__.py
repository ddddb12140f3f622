"""Facts about the world as TOML, each with its source and date."""
