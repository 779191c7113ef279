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
		return Permanent(fmt.Errorf("%w (name the file with the server's CA certificate in RESTIC_CACERT)", err))
	case errors.As(err, &invalid), errors.As(err, &hostname), errors.As(err, &verify), errors.As(err, &address):
		return Permanent(err)
	case errors.As(err, &record):
		return Permanent(fmt.Errorf("%w (is the server one for http instead of https?)", err))
	case errors.As(err, &unusable) && unusable.Err != nil && unusable.Err.Error() == "http: server gave HTTP response to HTTPS client":
		return Permanent(fmt.Errorf("%w (use http instead of https in the location)", err))
	}
	return err
}
