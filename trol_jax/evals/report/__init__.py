"""Result folders as the paper's tables and figures, compared with each other, and sample by sample."""
