use std::io::Read as _;

use flate2::read::GzDecoder;
use http_body_util::BodyExt as _;
use hyper::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, VARY};

use super::*;

fn asked(headers: &[(HeaderName, &str)]) -> HeaderMap {
    headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
}

async fn body(response: Response<Full<Bytes>>) -> Bytes {
    response.into_body().collect().await.unwrap().to_bytes()
}

#[tokio::test]
async fn every_file_is_served_compressed_or_not() {
    let page = Page::new();
    for (path, content_type, text) in FILES {
        let plain = page.file(path, &asked(&[])).unwrap();
        assert_eq!(plain.headers()[CONTENT_TYPE], content_type);
        assert_eq!(plain.headers().get(CONTENT_ENCODING), None);
        assert_eq!(body(plain).await, text);
        let gzip = page.file(path, &asked(&[(ACCEPT_ENCODING, "br, gzip;q=0.8")])).unwrap();
        assert_eq!(gzip.headers()[CONTENT_ENCODING], "gzip");
        assert_eq!(gzip.headers()[VARY], "accept-encoding");
        let mut unpacked = String::new();
        GzDecoder::new(&*body(gzip).await).read_to_string(&mut unpacked).unwrap();
        assert_eq!(unpacked, text, "{path}");
        let refused = page.file(path, &asked(&[(ACCEPT_ENCODING, "gzip;q=0, identity")])).unwrap();
        assert_eq!(refused.headers().get(CONTENT_ENCODING), None);
    }
    assert!(page.file("/page/", &asked(&[])).is_none() && page.file("/page", &asked(&[])).is_none());
}

#[tokio::test]
async fn who_has_a_file_is_told_so() {
    let page = Page::new();
    let first = page.file("/", &asked(&[])).unwrap();
    let tag = first.headers()[ETAG].to_str().unwrap().to_owned();
    let again = page.file("/", &asked(&[(IF_NONE_MATCH, &format!("\"other\", {tag}"))])).unwrap();
    assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
    assert_eq!(again.headers()[ETAG], *tag);
    assert!(body(again).await.is_empty());
    let other = page.file("/page/page.css", &asked(&[(IF_NONE_MATCH, &tag)])).unwrap();
    assert_eq!(other.status(), StatusCode::OK, "another file");
}

#[test]
fn a_browser_is_told_to_load_nothing_from_elsewhere() {
    let page = Page::new();
    for (path, ..) in FILES {
        let response = page.file(path, &asked(&[])).unwrap();
        let policy = response.headers()[CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        assert_eq!(response.headers()[X_CONTENT_TYPE_OPTIONS], "nosniff");
        assert_eq!(response.headers()[REFERRER_POLICY], "no-referrer");
        assert_eq!(response.headers()[CACHE_CONTROL], "no-cache");
    }
    for (path, content_type, text) in FILES {
        let elsewhere = text.replace("http://www.w3.org/", "");
        assert!(!elsewhere.contains("http:") && !elsewhere.contains("https:"), "{path}");
        // What comes from clients never becomes markup.
        for sink in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(content_type != SCRIPT || !text.contains(sink), "{path} has {sink}");
        }
    }
}

#[test]
fn every_module_that_is_imported_is_served() {
    let page = Page::new();
    let mut imported = 0;
    for (path, _, text) in FILES.into_iter().filter(|(_, kind, _)| *kind == SCRIPT) {
        for line in text.lines().filter(|line| line.starts_with("import ") || line.starts_with("} from ")) {
            let Some((_, from)) = line.split_once("from \"./") else { continue };
            let name = from.trim_end_matches("\";");
            assert!(page.files.contains_key(&*format!("/page/{name}")), "{path} imports {name}");
            imported += 1;
        }
    }
    assert!(imported > 5, "{imported}");
}

#[test]
fn it_is_small() {
    let page = Page::new();
    let all: usize = page.files.values().map(|file| file.gzip().len()).sum();
    println!("{all} bytes, compressed");
    assert!(all < 300_000 / 4, "{all} bytes, compressed");
}
