"""Alembic's folder: env.py runs the migrations in versions/, oldest first."""
