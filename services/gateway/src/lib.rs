//! The HTTP door: OpenAI routes in front of the gRPC services.
