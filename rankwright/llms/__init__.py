"""Text in, text out: the one place that talks to a language model. Import from the modules; nothing loads here."""
