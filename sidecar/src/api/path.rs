//! Parameters of a path, refused in our own words.

use super::error::ApiError;
use axum::extract::{FromRequestParts, Path};
use contract::FieldError;
use http::request::Parts;
use serde::de::DeserializeOwned;

/// Like axum's `Path`, whose own refusals (as of `%ff`, which is no UTF-8) are no answers of this API.
pub(super) struct InPath<T>(pub(super) T);

impl<S, T> FromRequestParts<S> for InPath<T>
where
    S: Send + Sync,
    T: DeserializeOwned + Send,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(value)) => Ok(Self(value)),
            Err(error) => Err(ApiError::invalid(vec![FieldError::new(
                "path",
                error.body_text(),
            )])),
        }
    }
}
