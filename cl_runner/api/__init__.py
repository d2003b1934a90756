"""What `import cl_runner as cl` offers to scripts and notebooks: runs, sweeps, tables, comparisons."""
