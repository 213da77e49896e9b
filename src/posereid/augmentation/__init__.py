"""Generated people as data: which poses they are drawn in, the drawing, the set on disk, and what is kept of it."""
