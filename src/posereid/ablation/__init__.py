"""The paper's ablation as a grid of trainings: Table 3, what it lacks, and decisions that it leaves open."""
