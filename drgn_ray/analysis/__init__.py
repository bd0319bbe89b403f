"""What the latents and volumes of a trained run say: no Ray, no MLflow."""
