//! An agent with no way out but the egress proxy.

use crate::stack::{Setup, Stack, TOKEN, run};
use contract::{EventBody, egress::EgressReport};
use serde_json::json;
use std::net::TcpListener;

/// Model calls work, what is not listed is refused with what to do, and there is no way around.
#[test]
fn nothing_gets_out_but_through_the_proxy() {
    run(async {
        let config = json!({
            "limits": {"maxConcurrentSessions": 2, "turnTimeoutSeconds": 600},
            "egress": {"mode": "proxy-only", "allow": [{"host": "listed.test"}]},
        });
        let stack = Stack::start(Setup::default().config(config)).await;
        let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = elsewhere.local_addr().unwrap().port();
        assert!(
            tokio::net::TcpStream::connect(("127.0.0.1", port))
                .await
                .is_ok(),
            "from outside it is reached"
        );
        let ask = |host: &str| {
            format!(
                "exec 3<>/dev/tcp/127.0.0.1/${{HTTPS_PROXY##*:}} && printf 'CONNECT {host}:443 HTTP/1.1\\r\\n\\r\\n' >&3 && cat <&3; exec 3>&-;"
            )
        };
        let command = format!(
            "{} {} (exec 3<>/dev/tcp/127.0.0.1/{port}) && echo went around; echo $http_proxy; env | grep -i ^no_proxy",
            ask("elsewhere.test"),
            ask("listed.test"),
        );
        let (_, reader) = stack.play(&format!("SCENARIO:bash <<<{command}>>>")).await;
        reader.complete();
        let said: String = reader
            .bodies()
            .filter_map(|body| match body {
                EventBody::ToolResult(result) => Some(result.output.clone()),
                _ => None,
            })
            .collect();
        assert!(said.contains("403 Forbidden"), "{said}");
        assert!(
            said.contains("add it to spec.network.egress.allow"),
            "{said}"
        );
        // It is on the list, and there is no such name.
        assert!(
            said.contains("listed.test:443: the name cannot be resolved"),
            "{said}"
        );
        assert!(!said.contains("went around"), "{said}");
        assert!(said.contains("http://127.0.0.1:"), "{said}");

        let report: EgressReport = stack
            .http
            .get(stack.url("/egress"))
            .bearer_auth(TOKEN)
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap();
        assert_eq!(report.refused.len(), 1, "{report:?}");
        assert!(
            report
                .fragment
                .contains(r#"{host: "elsewhere.test", ports: [443]}"#),
            "{report:?}"
        );
    });
}
