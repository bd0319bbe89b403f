"""All that one training process needs, without Ray and without MLflow."""
