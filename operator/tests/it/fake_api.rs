//! An API server in memory: as much as the operator uses of it, with deaths at chosen writes.

use crds::OpenCodeSession;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::{
    Client,
    client::Body,
    runtime::{reflector, watcher::Event},
};
use operator::session::observe::Stores;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

/// What becomes of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is done and answered.
    Lives,
    /// The process dies before it is sent.
    DiesBefore,
    /// It is done, and the process dies before the answer.
    DiesAfter,
}

#[derive(Debug, Default)]
pub(crate) struct Cluster {
    /// By resource and name.
    pub(crate) objects: BTreeMap<(String, String), Value>,
    /// Every write that took effect, in words.
    pub(crate) log: Vec<String>,
    counter: u64,
    writes: u64,
    kill: Option<(u64, Fate)>,
    dead: bool,
}

/// A shared cluster; clones see the same one.
#[derive(Clone, Debug, Default)]
pub(crate) struct FakeApi(pub(crate) Arc<Mutex<Cluster>>);

impl FakeApi {
    pub(crate) fn with(session: &OpenCodeSession) -> Self {
        let api = Self::default();
        api.put("opencodesessions", serde_json::to_value(session).unwrap());
        api
    }

    pub(crate) fn put(&self, resource: &str, mut object: Value) {
        let mut cluster = self.0.lock().unwrap();
        cluster.counter += 1;
        object["metadata"]["resourceVersion"] = json!(cluster.counter.to_string());
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        cluster.objects.insert((resource.into(), name), object);
    }

    pub(crate) fn get(&self, resource: &str, name: &str) -> Option<Value> {
        self.0
            .lock()
            .unwrap()
            .objects
            .get(&(resource.into(), name.into()))
            .cloned()
    }

    pub(crate) fn remove(&self, resource: &str, name: &str) {
        self.0
            .lock()
            .unwrap()
            .objects
            .remove(&(resource.into(), name.into()));
    }

    /// Counts writes from here; the `nth` (from 0) meets its fate.
    pub(crate) fn kill_at(&self, nth: u64, fate: Fate) {
        let mut cluster = self.0.lock().unwrap();
        cluster.writes = 0;
        cluster.kill = Some((nth, fate));
        cluster.dead = false;
    }

    /// A new process.
    pub(crate) fn revive(&self) {
        let mut cluster = self.0.lock().unwrap();
        cluster.kill = None;
        cluster.dead = false;
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.0.lock().unwrap().dead
    }

    pub(crate) fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().log)
    }

    pub(crate) fn session(&self, name: &str) -> Arc<OpenCodeSession> {
        Arc::new(serde_json::from_value(self.get("opencodesessions", name).unwrap()).unwrap())
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.clone(), "default")
    }

    /// Caches as they are after a new list.
    pub(crate) fn stores(&self) -> Stores {
        Stores {
            pods: self.store("pods"),
            claims: self.store("persistentvolumeclaims"),
        }
    }

    fn store<K>(&self, resource: &str) -> reflector::Store<K>
    where
        K: kube::Resource<DynamicType = ()> + DeserializeOwned + Clone + Send + Sync + 'static,
    {
        let (store, mut writer) = reflector::store();
        writer.apply_watcher_event(&Event::Init);
        for ((kind, _), object) in &self.0.lock().unwrap().objects {
            let ours =
                object["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "opencode-operator";
            if kind == resource && ours {
                writer.apply_watcher_event(&Event::InitApply(
                    serde_json::from_value(object.clone()).unwrap(),
                ));
            }
        }
        writer.apply_watcher_event(&Event::InitDone);
        store
    }
}

fn status(code: StatusCode, reason: &str) -> (StatusCode, Value) {
    let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": reason, "reason": reason, "code": code.as_u16()});
    (code, body)
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut target[key.as_str()], value);
        }
    }
}

impl Cluster {
    fn handle(&mut self, method: &Method, path: &str, body: &Value) -> (StatusCode, Value) {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let at = parts.iter().position(|p| *p == "namespaces").unwrap() + 2;
        let resource = parts[at].to_owned();
        let name = parts.get(at + 1).map(|n| (*n).to_owned());
        let sub = parts.get(at + 2).copied();
        let key = |name: &str| (resource.clone(), name.to_owned());
        self.counter += 1;
        match (method.as_str(), name) {
            ("GET", Some(name)) => match self.objects.get(&key(&name)) {
                Some(object) => (StatusCode::OK, object.clone()),
                None => status(StatusCode::NOT_FOUND, "NotFound"),
            },
            ("POST", None) => {
                let name = body["metadata"]["name"].as_str().unwrap().to_owned();
                if resource != "events" && self.objects.contains_key(&key(&name)) {
                    return status(StatusCode::CONFLICT, "AlreadyExists");
                }
                let mut object = body.clone();
                object["metadata"]["uid"] = json!(format!("uid-{}", self.counter));
                object["metadata"]["resourceVersion"] = json!(self.counter.to_string());
                object["metadata"]["creationTimestamp"] = json!("2031-05-06T07:08:09Z");
                if resource != "events" {
                    self.log.push(format!("create {resource} {name}"));
                    self.objects.insert(key(&name), object.clone());
                }
                (StatusCode::CREATED, object)
            }
            ("PATCH", Some(name)) => {
                let Some(object) = self.objects.get_mut(&key(&name)) else {
                    return status(StatusCode::NOT_FOUND, "NotFound");
                };
                for field in ["uid", "resourceVersion"] {
                    let wanted = &body["metadata"][field];
                    if !wanted.is_null() && *wanted != object["metadata"][field] {
                        return status(StatusCode::CONFLICT, "Conflict");
                    }
                }
                let before = object.clone();
                let mut patch = body.clone();
                patch["metadata"]
                    .as_object_mut()
                    .map(|m| m.remove("resourceVersion"));
                if sub == Some("status") {
                    patch = json!({ "status": patch["status"] });
                } else if sub == Some("resize") {
                    patch = json!({});
                }
                merge(object, &patch);
                let what = sub.map(|s| format!("/{s}")).unwrap_or_default();
                if *object == before && sub != Some("resize") {
                    self.log
                        .push(format!("USELESS patch {resource}{what} {name}"));
                } else {
                    self.log.push(format!("patch {resource}{what} {name}"));
                }
                object["metadata"]["resourceVersion"] = json!(self.counter.to_string());
                (StatusCode::OK, object.clone())
            }
            ("DELETE", Some(name)) => {
                let Some(object) = self.objects.get_mut(&key(&name)) else {
                    return status(StatusCode::NOT_FOUND, "NotFound");
                };
                if body["preconditions"]["uid"] != object["metadata"]["uid"] {
                    return status(StatusCode::CONFLICT, "Conflict");
                }
                assert!(
                    body["gracePeriodSeconds"].is_null(),
                    "nothing is ever forced: {body}"
                );
                object["metadata"]["deletionTimestamp"] = json!("2031-05-06T07:08:09Z");
                self.log.push(format!("delete {resource} {name}"));
                (StatusCode::OK, object.clone())
            }
            (method, name) => panic!("unexpected {method} {resource} {name:?}"),
        }
    }
}

impl tower::Service<Request<Body>> for FakeApi {
    type Response = Response<Body>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let api = self.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let bytes = body
                .collect()
                .await
                .map_err(std::io::Error::other)?
                .to_bytes();
            let body = if bytes.is_empty() {
                Value::Null
            } else {
                serde_json::from_slice(&bytes)?
            };
            let mut cluster = api.0.lock().unwrap();
            let died = || Err(std::io::Error::other("the process is dead"));
            if cluster.dead {
                return died();
            }
            let mut fate = Fate::Lives;
            if parts.method != Method::GET {
                if let Some((nth, what)) = cluster.kill
                    && nth == cluster.writes
                {
                    fate = what;
                }
                cluster.writes += 1;
            }
            if fate == Fate::DiesBefore {
                cluster.dead = true;
                return died();
            }
            let (code, answer) = cluster.handle(&parts.method, parts.uri.path(), &body);
            if fate == Fate::DiesAfter {
                cluster.dead = true;
                return died();
            }
            let response = Response::builder()
                .status(code)
                .header("content-type", "application/json");
            Ok(response
                .body(Body::from(answer.to_string().into_bytes()))
                .unwrap())
        })
    }
}
