//! The page, which asks nobody but this gateway.

use axum::{
    Router,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};

use crate::app::App;

/// Lets the page do what it does and no more: its own files, and no text that becomes markup or code.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";
const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// A file of the page.
#[derive(Clone, Copy, Debug)]
struct Asset {
    path: &'static str,
    kind: &'static str,
    text: &'static str,
}

/// The files of `page/` by name: `index.html` is `/`, the others lie below `/page`.
macro_rules! assets {
    ($($name:literal $kind:ident),* $(,)?) => {
        [
            Asset { path: "/", kind: HTML, text: include_str!("page/index.html") },
            $(Asset { path: concat!("/page/", $name), kind: $kind, text: include_str!(concat!("page/", $name)) }),*
        ]
    };
}

const ASSETS: [Asset; 22] = assets![
    "answer.js" SCRIPT,
    "api.js" SCRIPT,
    "app.js" SCRIPT,
    "chart.js" SCRIPT,
    "chat.js" SCRIPT,
    "compare.js" SCRIPT,
    "composer.js" SCRIPT,
    "data.js" SCRIPT,
    "dom.js" SCRIPT,
    "icon.svg" SVG,
    "job.js" SCRIPT,
    "jobs.js" SCRIPT,
    "models.js" SCRIPT,
    "new_job.js" SCRIPT,
    "prompt.js" SCRIPT,
    "sample.js" SCRIPT,
    "served.js" SCRIPT,
    "settings.js" SCRIPT,
    "style.css" CSS,
    "tokens.js" SCRIPT,
    "version.js" SCRIPT,
];

pub(crate) fn routes() -> Router<App> {
    ASSETS.into_iter().fold(Router::new(), |router, asset| {
        let tag = asset.tag();
        router.route(asset.path, get(move |headers: HeaderMap| async move { asset.answer(&tag, &headers) }))
    })
}

impl Asset {
    /// Tells this text from another gateway's.
    fn tag(self) -> String {
        format!("\"{:016x}\"", fnv1a(self.text.as_bytes()))
    }

    /// The file, or that the caller has it already.
    fn answer(self, tag: &str, asked: &HeaderMap) -> Response {
        let known = asked.get(header::IF_NONE_MATCH).and_then(|tags| tags.to_str().ok());
        let is_known =
            known.is_some_and(|tags| tags.split(',').any(|each| each.trim().trim_start_matches("W/") == tag));
        let headers: [(HeaderName, HeaderValue); 5] = [
            (header::CONTENT_TYPE, HeaderValue::from_static(self.kind)),
            (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
            (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
            (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
            // Asked for each time and sent once: a new gateway has a new page at once.
            (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        ];
        let tagged = [(header::ETAG, tag.to_owned())];
        if is_known {
            (StatusCode::NOT_MODIFIED, headers, tagged).into_response()
        } else {
            (headers, tagged, self.text).into_response()
        }
    }
}

/// Tells versions of a file apart; it guards nothing.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::Path};

    use super::*;

    #[test]
    fn every_file_of_the_page_is_served_and_asks_nobody_else() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/page");
        let there: BTreeSet<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .map(|name| if name == "index.html" { "/".to_owned() } else { format!("/page/{name}") })
            .collect();
        let served: BTreeSet<String> = ASSETS.iter().map(|asset| asset.path.to_owned()).collect();
        assert_eq!(served, there);
        for asset in ASSETS {
            let text = asset.text.replace("http://www.w3.org/2000/svg", "");
            assert!(!text.contains("://"), "{} names another place", asset.path);
            for unsafe_word in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
                assert!(!text.contains(unsafe_word), "{} makes markup or code of text: {unsafe_word}", asset.path);
            }
            assert!(text.lines().count() <= 400, "{} is long", asset.path);
        }
    }

    #[test]
    fn what_a_browser_has_is_not_sent_again() {
        let answer = |asset: Asset, asked: HeaderMap| asset.answer(&asset.tag(), &asked);
        let fresh = answer(ASSETS[0], HeaderMap::new());
        assert_eq!(fresh.status(), StatusCode::OK);
        let tag = fresh.headers()[header::ETAG].clone();
        for (sent, status) in [(tag.clone(), 304), (HeaderValue::from_static("\"other\""), 200)] {
            let asked = HeaderMap::from_iter([(header::IF_NONE_MATCH, sent)]);
            assert_eq!(answer(ASSETS[0], asked).status().as_u16(), status);
        }
        assert_ne!(answer(ASSETS[1], HeaderMap::new()).headers()[header::ETAG], tag);
        let list = HeaderValue::from_str(&format!("\"x\", W/{}", tag.to_str().unwrap())).unwrap();
        let asked = HeaderMap::from_iter([(header::IF_NONE_MATCH, list)]);
        assert_eq!(answer(ASSETS[0], asked).status(), StatusCode::NOT_MODIFIED);
    }
}
