//! A model: a row of differences, its hyperparameters, its weights as views of the map, and the forward pass.
