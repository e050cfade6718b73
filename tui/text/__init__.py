"""Text on its way to the screen: no Textual in here."""
