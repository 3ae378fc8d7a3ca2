//! The checks of one token: RFC 7519, with the advice of RFC 8725.

use jsonwebtoken::{
    Header, Validation, decode, decode_header,
    errors::{Error, ErrorKind},
};

use crate::{
    config::{Accepted, Config},
    identity::Claims,
    keys::Key,
    signature,
};

/// Why a token is refused. The texts go into `error_description` (RFC 6750 §3), so they are fixed, and without quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not three parts, no base64url, no JSON, or an algorithm that nobody knows, `none` among them.
    #[error("the token is malformed, or its algorithm is not supported")]
    Malformed,
    /// RFC 7515 §4.1.11: what is marked critical must be understood, and nothing is.
    #[error("the token has critical headers")]
    Critical,
    /// Several keys, and no `kid` to choose by.
    #[error("the token does not name its key, and there are several")]
    NoKeyNamed,
    /// No key has this `kid`.
    #[error("the key that the token names is unknown")]
    UnknownKey,
    /// The key is for another algorithm.
    #[error("the algorithm of the token is not that of its key")]
    OtherAlgorithm,
    /// The signature is not the key's.
    #[error("the signature is wrong")]
    Signature,
    /// `exp` has passed.
    #[error("the token has expired")]
    Expired,
    /// `nbf` is yet to come.
    #[error("the token is not valid yet")]
    Early,
    /// `iss` is another.
    #[error("the token is from another issuer")]
    Issuer,
    /// `aud` is another.
    #[error("the token is for another audience")]
    Audience,
    /// A checked claim is not there, or one is not what it should be.
    #[error("a claim is missing or malformed: exp, nbf, iss, sub or aud")]
    Claims,
}

/// Lets a token through with its claims, or says why not.
pub fn check(token: &str, config: &Config) -> Result<Claims, Refusal> {
    signature::install();
    let header = decode_header(token).map_err(|_| Refusal::Malformed)?;
    if header.crit.is_some() {
        return Err(Refusal::Critical);
    }
    let key = select(&header, &config.keys)?;
    let claims = decode::<Claims>(token, &key.verifying, &validation(key, config)).map_err(refusal)?.claims;
    // jsonwebtoken also takes a list of issuers; RFC 7519 §4.1.1 knows one.
    if claims.get("iss").is_some_and(|issuer| !issuer.is_string()) {
        return Err(Refusal::Claims);
    }
    Ok(claims)
}

/// The key that the token names; without a name, the only one there is.
fn select<'a>(header: &Header, keys: &'a [Key]) -> Result<&'a Key, Refusal> {
    let named: Vec<&Key> = match &header.kid {
        Some(id) => keys.iter().filter(|key| key.id.as_ref() == Some(id)).collect(),
        None if keys.len() > 1 => return Err(Refusal::NoKeyNamed),
        None => keys.iter().collect(),
    };
    if named.is_empty() {
        return Err(Refusal::UnknownKey);
    }
    // RFC 7517 §4.5: keys of different types may share a name.
    named.into_iter().find(|key| key.algorithm == header.alg).ok_or(Refusal::OtherAlgorithm)
}

fn validation(key: &Key, config: &Config) -> Validation {
    let mut validation = Validation::new(key.algorithm);
    let mut required = vec!["exp"];
    validation.leeway = config.leeway_seconds;
    validation.validate_nbf = true;
    if let Accepted::OneOf(issuers) = &config.issuers {
        validation.set_issuer(issuers);
        required.push("iss");
    }
    match &config.audiences {
        Accepted::Any => validation.validate_aud = false,
        Accepted::OneOf(audiences) => {
            validation.set_audience(audiences);
            required.push("aud");
        }
    }
    validation.set_required_spec_claims(&required);
    validation
}

fn refusal(error: Error) -> Refusal {
    match error.kind() {
        ErrorKind::InvalidSignature => Refusal::Signature,
        ErrorKind::ExpiredSignature => Refusal::Expired,
        ErrorKind::ImmatureSignature => Refusal::Early,
        ErrorKind::InvalidIssuer => Refusal::Issuer,
        ErrorKind::InvalidAudience => Refusal::Audience,
        ErrorKind::InvalidAlgorithm => Refusal::OtherAlgorithm,
        // The header was read before, so what is no JSON of the right shape now are the claims.
        ErrorKind::MissingRequiredClaim(_) | ErrorKind::InvalidClaimFormat(_) | ErrorKind::Json(_) => Refusal::Claims,
        _ => Refusal::Malformed,
    }
}

#[cfg(test)]
mod tests;
