"""What a checkpoint folder of ours holds. checkpoint_manager.py is its face."""
