//! Codes of calls that the proxy itself answers.

macro_rules! codes {
    ($($(#[$doc:meta])+ $name:ident = $text:literal,)+) => {
        /// Why the proxy answers itself: stable, in the answer and in the audit log.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Code {
            $($(#[$doc])+ $name,)+
        }

        impl Code {
            /// All of them, for docs/errors.md.
            #[cfg(test)]
            pub(crate) const ALL: &[Self] = &[$(Self::$name,)+];

            pub(crate) const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

codes! {
    /// The pod's budget is used up.
    BudgetExhausted = "budget_exhausted",
    /// There is a budget of money and no price.
    ModelUnpriced = "model_unpriced",
    /// Too many calls in a minute.
    CallsPerMinute = "calls_per_minute",
    /// The same request too often in a row.
    SameRequest = "same_request",
    /// The audit log takes no record.
    AuditUnwritable = "audit_unwritable",
    /// The endpoint was changed while the turn ran.
    EndpointChanged = "endpoint_changed",
    /// Nobody vouches for the provider's certificate.
    UntrustedCertificate = "untrusted_certificate",
    /// The provider's answer is none of a model.
    BadAnswer = "bad_answer",
    /// The provider points elsewhere.
    Redirect = "redirect",
    /// The provider's answer broke off before it began.
    Cut = "cut",
    /// The provider is silent.
    Timeout = "timeout",
    /// The provider is not there.
    Unreachable = "unreachable",
    /// The way to the provider cannot be set up.
    HttpProxy = "http_proxy",
    /// The provider's key is missing.
    KeyMissing = "key_missing",
    /// The session's own key was lost with a restart.
    KeyRequired = "key_required",
    /// No model has this alias.
    ModelNotFound = "model_not_found",
    /// The session has no model of this API.
    SessionNotFound = "session_not_found",
    /// A request that breaks the rules of HTTP or of the API.
    InvalidRequest = "invalid_request",
    /// A request that is too large.
    PayloadTooLarge = "payload_too_large",
    /// A body that is no plain JSON.
    UnsupportedMediaType = "unsupported_media_type",
    /// A body that does not arrive.
    RequestTimeout = "request_timeout",
    /// A request for another host.
    WrongHost = "wrong_host",
    /// No such path.
    NotFound = "not_found",
    /// Another method than POST.
    MethodNotAllowed = "method_not_allowed",
    /// Too many large requests at once.
    Busy = "busy",
}

#[cfg(test)]
mod tests {
    use super::Code;

    #[test]
    fn every_code_of_the_proxy_is_explained() {
        let text = include_str!("../../../docs/errors.md");
        let section = text
            .split("\n## ")
            .find(|section| section.starts_with("Model calls that the proxy answers"))
            .unwrap();
        let rows: Vec<&str> = section
            .lines()
            .filter_map(|line| line.strip_prefix("| `"))
            .collect();
        for code in Code::ALL {
            let head = format!("{}` |", code.as_str());
            let row = rows.iter().find_map(|row| row.strip_prefix(&head));
            let cells = row.map_or(0, |row| {
                row.split('|').filter(|cell| cell.trim().len() > 2).count()
            });
            assert_eq!(
                cells,
                2,
                "{} needs what it means and what to do",
                code.as_str()
            );
        }
        assert_eq!(
            rows.len(),
            Code::ALL.len(),
            "a row without a code, or one twice"
        );
    }
}
