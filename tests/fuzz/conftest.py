import sys
from pathlib import Path

# The modules of this folder find each other as they do when run.py is run.
sys.path.insert(0, str(Path(__file__).parent))
