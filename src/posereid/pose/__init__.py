"""Poses: the 18 joints, files that hold them, heat maps, canonical poses, drawn skeletons."""
