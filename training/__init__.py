"""Scripts that train and score the two reference models of the zoo on easy-VQA."""
