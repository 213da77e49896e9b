"""The pose-transfer generator of sections 3.1 and 3.2, part by part."""
