//! Which requests are shown: `user=ada latency>1s`, all of whose terms must hold.

use std::str::FromStr;

use llamaprobe_api::Request;

use crate::duration::duration;

/// The terms of a filter; none shows all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Query(Vec<Term>);

#[derive(Clone, Debug, PartialEq)]
enum Term {
    /// A name is, or is not, this one.
    Text { field: TextField, equal: bool, value: String },
    /// A figure is above, or below, this one.
    Figure { field: FigureField, above: bool, value: f64 },
    /// Text that stands in one of the names.
    Anywhere(String),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum TextField {
    User,
    Route,
    State,
    Finish,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum FigureField {
    /// Milliseconds.
    Latency,
    /// Milliseconds.
    FirstToken,
    /// Milliseconds.
    Gap,
    Prompt,
    Generated,
    Context,
}

/// Why a filter is none.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum QueryError {
    /// There is no such field.
    #[error(
        "{0:?} cannot be filtered by: user, route, state and finish with = or !=, latency, ttft, gap, prompt, generated and context with > or <"
    )]
    Field(String),
    /// The field takes no such comparison.
    #[error("{0}: {1}")]
    Sign(String, &'static str),
    /// The value is no number or time.
    #[error("{0}: {1:?} is no number, and no time such as 500ms, 1.5s or 2m")]
    Value(String, String),
}

impl FromStr for Query {
    type Err = QueryError;

    fn from_str(text: &str) -> Result<Self, QueryError> {
        text.split_whitespace().map(term).collect::<Result<_, _>>().map(Self)
    }
}

fn term(text: &str) -> Result<Term, QueryError> {
    let Some(at) = text.find(['=', '!', '>', '<']) else { return Ok(Term::Anywhere(text.to_lowercase())) };
    let (name, rest) = text.split_at(at);
    let (sign, value) = match rest.strip_prefix("!=") {
        Some(value) => ("!=", value),
        None => rest.split_at(1),
    };
    let text_field = match name {
        "user" => Some(TextField::User),
        "route" => Some(TextField::Route),
        "state" => Some(TextField::State),
        "finish" => Some(TextField::Finish),
        _ => None,
    };
    if let Some(field) = text_field {
        let equal = match sign {
            "=" => true,
            "!=" => false,
            _ => return Err(QueryError::Sign(name.to_owned(), "a name is compared by = or !=")),
        };
        return Ok(Term::Text { field, equal, value: value.to_owned() });
    }
    let field = match name {
        "latency" => FigureField::Latency,
        "ttft" => FigureField::FirstToken,
        "gap" => FigureField::Gap,
        "prompt" => FigureField::Prompt,
        "generated" => FigureField::Generated,
        "context" => FigureField::Context,
        _ => return Err(QueryError::Field(name.to_owned())),
    };
    let above = match sign {
        ">" => true,
        "<" => false,
        _ => return Err(QueryError::Sign(name.to_owned(), "a figure is compared by > or <")),
    };
    let wrong = || QueryError::Value(name.to_owned(), value.to_owned());
    Ok(Term::Figure { field, above, value: figure(field, value).ok_or_else(wrong)? })
}

/// A number; of a time, in milliseconds, which is also the unit of one without any.
fn figure(field: FigureField, text: &str) -> Option<f64> {
    let is_time = matches!(field, FigureField::Latency | FigureField::FirstToken | FigureField::Gap);
    let time = duration(text).filter(|_| is_time).map(|time| time.as_secs_f64() * 1e3);
    time.or_else(|| text.parse().ok().filter(|number: &f64| number.is_finite()))
}

impl Query {
    /// Whether all requests are shown.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a request is shown.
    pub fn takes(&self, request: &Request) -> bool {
        self.0.iter().all(|term| match term {
            Term::Anywhere(text) => {
                let names = [&request.user, &request.route, &request.state, &request.id];
                names.iter().any(|name| name.to_lowercase().contains(text))
            }
            Term::Text { field, equal, value } => {
                let name = match field {
                    TextField::User => &request.user,
                    TextField::Route => &request.route,
                    TextField::State => &request.state,
                    TextField::Finish => request.finish_reason.as_ref().unwrap_or(&request.state),
                };
                (name == value) == *equal
            }
            // What there is not is neither above nor below.
            Term::Figure { field, above, value } => {
                let figure = match field {
                    FigureField::Latency => Some(request.duration_ms),
                    FigureField::FirstToken => request.first_token_ms,
                    FigureField::Gap => request.worst_gap_ms,
                    FigureField::Prompt => Some((request.tokens.prompt + request.tokens.cached) as f64),
                    FigureField::Generated => Some(request.tokens.generated as f64),
                    FigureField::Context => Some(request.context_used as f64),
                };
                figure.is_some_and(|figure| if *above { figure > *value } else { figure < *value })
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            user: "ada".to_owned(),
            route: "/v1/chat/completions".to_owned(),
            state: "decode".to_owned(),
            duration_ms: 1500.0,
            worst_gap_ms: Some(250.0),
            ..Request::default()
        }
    }

    #[test]
    fn all_terms_must_hold() {
        for (text, takes) in [
            ("", true),
            ("user=ada", true),
            ("user!=ada", false),
            ("user=ad", false),
            ("CHAT", true),
            ("latency>1s", true),
            ("latency>1500", false),
            ("latency<2m gap>0.2s", true),
            ("latency>1s user=bob", false),
            ("state=decode gap<300ms", true),
            ("ttft>1ms", false),
            ("ttft<1s", false),
            ("finish=decode", true),
        ] {
            assert_eq!(text.parse::<Query>().unwrap().takes(&request()), takes, "{text}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, named) in [
            ("colour=red", "colour"),
            ("latency=1s", "latency"),
            ("user>ada", "user"),
            ("latency>soon", "soon"),
            ("prompt>1s", "1s"),
            ("gap>inf", "inf"),
            ("!", "\"\""),
        ] {
            let message = text.parse::<Query>().unwrap_err().to_string();
            assert!(message.contains(named), "{text}: {message}");
        }
    }
}
