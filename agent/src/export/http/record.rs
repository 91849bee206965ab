//! `POST /record`: the agent writes down what it holds of the last minutes.

use http_body_util::Full;
use hyper::{Request, Response, StatusCode, body::Bytes};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use super::{away, later, respond, text};
use crate::recorder::{Asked, Refusal};

/// Asks for a recording. Answers with the path of its file once that is written.
pub(super) async fn record<T>(
    request: &Request<T>,
    recordings: Option<&mpsc::Sender<Asked>>,
) -> Response<Full<Bytes>> {
    // A page of somebody else in a browser of this machine may ask, too.
    let site = request.headers().get("sec-fetch-site").and_then(|site| site.to_str().ok());
    if site.is_some_and(|site| !matches!(site, "same-origin" | "none")) {
        return text(StatusCode::FORBIDDEN, "a page of another site may not ask for recordings\n");
    }
    let Some(recordings) = recordings else {
        return text(StatusCode::CONFLICT, "what is played here is a recording\n");
    };
    let (reply, answer) = oneshot::channel();
    if recordings.send(reply).await.is_err() {
        return away();
    }
    let Ok(made) = answer.await else { return away() };
    match made {
        Ok(file) => {
            let body = json!({"recording": file.display().to_string()}).to_string() + "\n";
            respond(StatusCode::CREATED, "application/json", body.into())
        }
        Err(Refusal::Limited) => later("a recording was made a moment ago\n"),
        Err(why @ Refusal::Off) => respond(StatusCode::CONFLICT, PLAIN, format!("{why}\n").into()),
        Err(why @ Refusal::Unwritable(_)) => {
            respond(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, format!("{why}\n").into())
        }
    }
}

const PLAIN: &str = "text/plain; charset=utf-8";
