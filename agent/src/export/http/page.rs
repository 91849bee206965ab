//! The page at `/`: what `llamaprobe top` shows, in a browser, of this agent alone. Its files are part of the program, and
//! load nothing from anywhere else; what they show they ask `/snapshot` and `/history` for.
//!
//! They are plain HTML, CSS and modules of JavaScript, without a library: of those that draw graphs none comes as a crate,
//! and what is committed or downloaded at build time is nobody else's.

use std::{collections::BTreeMap, sync::OnceLock};

use http_body_util::Full;
use hyper::{
    HeaderMap, Response, StatusCode,
    body::Bytes,
    header::{
        CACHE_CONTROL, CONTENT_SECURITY_POLICY, ETAG, HeaderName, HeaderValue, IF_NONE_MATCH,
        REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    },
};

use super::{Encoding, encoded, gzip, respond, takes_gzip};

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

macro_rules! files {
    ($($path:literal, $kind:ident, $file:literal;)*) => {
        [$(($path, $kind, include_str!(concat!("page/", $file)))),*]
    };
}

/// Path, content type and text of each file.
const FILES: [(&str, &str, &str); 15] = files! {
    "/", HTML, "index.html";
    "/page/page.css", CSS, "page.css";
    "/page/icon.svg", SVG, "icon.svg";
    "/page/main.js", SCRIPT, "main.js";
    "/page/source.js", SCRIPT, "source.js";
    "/page/format.js", SCRIPT, "format.js";
    "/page/request.js", SCRIPT, "request.js";
    "/page/dom.js", SCRIPT, "dom.js";
    "/page/graph.js", SCRIPT, "graph.js";
    "/page/graphs.js", SCRIPT, "graphs.js";
    "/page/overview.js", SCRIPT, "overview.js";
    "/page/steps.js", SCRIPT, "steps.js";
    "/page/timeline.js", SCRIPT, "timeline.js";
    "/page/waterfall.js", SCRIPT, "waterfall.js";
    "/page/tables.js", SCRIPT, "tables.js";
};

/// Nothing from elsewhere, nothing inline, in no frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What goes with every file.
const HEADERS: [(HeaderName, &str); 4] = [
    (CONTENT_SECURITY_POLICY, POLICY),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (REFERRER_POLICY, "no-referrer"),
    // It may be kept, and is asked for each time: an agent may be another one by then.
    (CACHE_CONTROL, "no-cache"),
];

/// The files, each compressed once.
pub(super) struct Page {
    files: BTreeMap<&'static str, File>,
}

struct File {
    content_type: &'static str,
    plain: &'static str,
    /// Compressed when somebody wants it first: most agents are only scraped.
    gzip: OnceLock<Bytes>,
    tag: String,
}

impl File {
    fn gzip(&self) -> &Bytes {
        self.gzip.get_or_init(|| gzip(self.plain.as_bytes()))
    }
}

impl Page {
    pub(super) fn new() -> Self {
        let file = |(path, content_type, plain): (_, _, &'static str)| {
            let tag = format!("W/\"{:08x}\"", crc32fast::hash(plain.as_bytes()));
            (path, File { content_type, plain, gzip: OnceLock::new(), tag })
        };
        Self { files: FILES.into_iter().map(file).collect() }
    }

    /// The file at this path, if there is one.
    pub(super) fn file(&self, path: &str, asked: &HeaderMap) -> Option<Response<Full<Bytes>>> {
        let file = self.files.get(path)?;
        let has_it = asked.get(IF_NONE_MATCH).is_some_and(|tags| {
            tags.to_str().is_ok_and(|tags| tags.split(',').any(|tag| tag.trim() == file.tag))
        });
        let mut response = if has_it {
            respond(StatusCode::NOT_MODIFIED, file.content_type, Bytes::new())
        } else if takes_gzip(asked) {
            let gzip = file.gzip().clone();
            encoded(respond(StatusCode::OK, file.content_type, gzip), Encoding::Gzip)
        } else {
            let plain = Bytes::from_static(file.plain.as_bytes());
            encoded(respond(StatusCode::OK, file.content_type, plain), Encoding::Plain)
        };
        let headers = response.headers_mut();
        headers.extend(HEADERS.map(|(name, value)| (name, HeaderValue::from_static(value))));
        headers.extend(HeaderValue::from_str(&file.tag).ok().map(|tag| (ETAG, tag)));
        Some(response)
    }
}

#[cfg(test)]
mod tests;
