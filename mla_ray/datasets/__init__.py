"""Sources of tables: one module per dataset, with readers for its captions and translations."""
