//! A service registry with Nacos model and wire APIs, checked by the engine.
