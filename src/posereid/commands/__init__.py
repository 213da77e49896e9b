"""The commands of ``posereid``, each a class whose fields are its options."""
