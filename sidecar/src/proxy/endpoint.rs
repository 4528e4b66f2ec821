//! Base URLs of providers: what is accepted, and when two are the same.

use contract::pod::{ProviderConfig, ProviderKind};
use url::Url;

/// Longest URL, in bytes.
const URL_MAX: usize = 2048;

/// A base URL: http or https, a host, no user, query or fragment, no slash at the end of its path.
/// Equal if scheme, host, port and path are, written in whatever way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint(Url);

impl Endpoint {
    /// Checks one. The error is the broken rule.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        // The parser drops tabs and line breaks and turns backslashes: what was compared and what
        // was written would differ.
        if text.len() > URL_MAX || !text.bytes().all(|b| b.is_ascii_graphic() && b != b'\\') {
            return Err("at most 2048 visible ASCII characters, no backslash");
        }
        let mut url = Url::parse(text).map_err(|_| "an absolute http or https URL")?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err("an absolute http or https URL");
        }
        // An empty user, as in `https://@host`, leaves no trace in the parsed URL.
        let authority = text.split('/').nth(2).unwrap_or_default();
        if !url.username().is_empty() || url.password().is_some() || authority.contains('@') {
            return Err("no user or password in the URL");
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err("no query and no fragment in the URL");
        }
        let path = url.path().trim_end_matches('/').to_owned();
        url.set_path(&path);
        Ok(Self(url))
    }

    pub(crate) fn into_url(self) -> Url {
        self.0
    }
}

/// The endpoint of a declared provider. The error is the broken rule.
pub(crate) fn of(provider: &ProviderConfig) -> Result<Endpoint, String> {
    let name = &provider.name;
    match &provider.endpoint {
        Some(text) => Endpoint::parse(text)
            .map_err(|rule| format!("endpoint of the pod's provider {name:?}: {rule}")),
        None => public(provider.kind)
            .ok_or_else(|| format!("the pod's provider {name:?} needs an endpoint")),
    }
}

/// The public endpoint, where there is one.
pub(crate) fn public(kind: ProviderKind) -> Option<Endpoint> {
    let text = match kind {
        ProviderKind::Openai => "https://api.openai.com/v1",
        ProviderKind::Anthropic => "https://api.anthropic.com/v1",
        ProviderKind::Compatible => return None,
    };
    Endpoint::parse(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_however_written() {
        let plain = Endpoint::parse("https://models.test/v1").unwrap();
        for same in [
            "https://models.test/v1/",
            "HTTPS://Models.TEST:443/v1",
            "https://models.test/x/../v1//",
            "https://%6dodels.test/v1",
        ] {
            assert_eq!(Endpoint::parse(same).unwrap(), plain, "{same}");
        }
        for other in [
            "http://models.test/v1",
            "https://models.test:444/v1",
            "https://models.test.evil/v1",
            "https://models.test./v1",
            "https://models.test/V1",
            "https://models.test/v1/x",
            "https://models.test/v1/%2e%2e/v2",
            "https://models.test/",
        ] {
            assert_ne!(Endpoint::parse(other).unwrap(), plain, "{other}");
        }
    }

    #[test]
    fn refuses_what_hides_something() {
        for bad in [
            "",
            "models.test/v1",
            "//models.test/v1",
            "ftp://models.test",
            "file:///etc/passwd",
            "data:text/plain,x",
            "https://",
            "https://user@models.test/v1",
            "https://user:pw@models.test/v1",
            "https://@models.test/v1",
            "https://models.test/v1?x=1",
            "https://models.test/v1?",
            "https://models.test/v1#x",
            "https://models.test/v1#",
            "https://models.test\\@evil.test/v1",
            "https://models.test/\tv1",
            " https://models.test/v1",
            "https://models.test/v1\r\nx: y",
            "https://models.test:99999/v1",
        ] {
            assert!(Endpoint::parse(bad).is_err(), "{bad:?}");
        }
        assert!(Endpoint::parse(&format!("https://x/{}", "a".repeat(2048))).is_err());
    }
}
