"""The world of the stickers: OpenMoji's artwork composed on coloured grounds, with exact truth maps and captions."""
