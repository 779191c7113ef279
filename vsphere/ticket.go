package vsphere

import "log/slog"

// Ticket admits once to the NFC server of an ESXi host (HostServiceTicket in the API).
type Ticket struct {
	Host           string // ESXi host to dial; filled with the server's own name when a bare ESXi host leaves it out
	Port           int    // 902
	Thumbprint     string // SHA-1 of the host's certificate, colon hexadecimal; empty when Certificate is given
	Certificate    string // PEM, from API 9.0 on; empty when Thumbprint is given
	Service        string // "vpxa-nfc" through vCenter, "nfc" direct
	ServiceVersion string // "1.1"
	SessionID      string // the secret: never printed, see String
}

// String leaves the session id out.
func (t Ticket) String() string { return t.Service + " on " + t.Host }

// GoString leaves the session id out.
func (t Ticket) GoString() string { return "vsphere.Ticket{" + t.String() + "}" }

// LogValue leaves the session id out.
func (t Ticket) LogValue() slog.Value { return slog.StringValue(t.String()) }
