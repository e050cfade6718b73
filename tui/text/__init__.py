"""Text processing for the screen. No Textual in here."""
