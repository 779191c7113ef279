package backend

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
)

// ExplainNetwork marks the errors of a network client that no retry mends, and says what does. Everything else,
// refused connections and unknown hosts too, may be over in a minute.
func ExplainNetwork(err error) error {
	if err == nil {
		return nil
	}
	var (
		unknown  x509.UnknownAuthorityError
		invalid  x509.CertificateInvalidError
		hostname x509.HostnameError
		verify   *tls.CertificateVerificationError
		record   tls.RecordHeaderError
		address  *net.AddrError
		unusable *url.Error
	)
	switch {
	case errors.As(err, &unknown):
		return fmt.Errorf("%w (name the file with the server's CA certificate in RESTIC_CACERT): %w", err, ErrPermanent)
	case errors.As(err, &invalid), errors.As(err, &hostname), errors.As(err, &verify), errors.As(err, &address):
		return fmt.Errorf("%w: %w", err, ErrPermanent)
	case errors.As(err, &record):
		return fmt.Errorf("%w (is the server one for http instead of https?): %w", err, ErrPermanent)
	case errors.As(err, &unusable) && unusable.Err != nil && unusable.Err.Error() == "http: server gave HTTP response to HTTPS client":
		return fmt.Errorf("%w (use http instead of https in the location): %w", err, ErrPermanent)
	}
	return err
}
