"""What `import cl_runner as cl` offers: runs, sweeps, tables, comparisons."""
