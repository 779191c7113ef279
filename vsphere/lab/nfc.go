package lab

import (
	"crypto/tls"
	"net/http"
)

type nfcState struct{}

func (s *sim) startNFC(tls.Certificate) error                                { return nil }
func (s *sim) stopNFC() error                                                { return nil }
func (s *sim) serveInternal(http.ResponseWriter, *http.Request, []byte) bool { return false }
func (s *sim) serveLeases(*http.ServeMux)                                    {}
func (s *sim) serveControl(*http.ServeMux)                                   {}

type leaseTable struct{}
