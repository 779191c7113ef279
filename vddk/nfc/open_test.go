package nfc_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vddk/nfc"
	"github.com/vmkeep/vmkeep/vddk/nfc/nfctest"
)

// outcome is what opening is to give: a working disk, or an error with certain words in it.
type outcome struct {
	err   error
	words []string
}

func (k *kit) outcome(want outcome) {
	k.t.Helper()
	d, err := k.open(k.t.Context())
	if err == nil {
		if want.err != nil {
			k.t.Errorf("opening succeeds, %v was expected", want.err)
		}
		k.all(d)
		k.close(d)
		return
	}
	if want.err == nil || !errors.Is(err, want.err) {
		k.t.Errorf("opening gives %v, expected was %v", err, want.err)
	}
	for _, w := range want.words {
		if !strings.Contains(err.Error(), w) {
			k.t.Errorf("the error does not say %q: %v", w, err)
		}
	}
	k.quiet()
}

func (k *kit) logged(s string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return strings.Contains(k.log.String(), s)
}

func TestGreetings(t *testing.T) {
	both(t, 1<<20, func(t *testing.T, k *kit) {
		k.outcome(outcome{})
		if !k.logged("THUMBPRINT_SHA2 PlainText") {
			t.Error("THUMBPRINT_SHA2 is not asked for where it is announced")
		}
	})
	both(t, 1<<20, func(t *testing.T, k *kit) {
		k.SetScenario(nfctest.Scenario{Greeting: nfctest.Plain})
		k.outcome(outcome{})
		if k.logged("THUMBPRINT") {
			t.Error("THUMBPRINT_SHA2 is asked for where it is not announced")
		}
	})
	for name, c := range map[string]struct {
		greeting nfctest.Greeting
		want     outcome
	}{
		"garbage":  {nfctest.Garbage, outcome{nfc.ErrProtocol, []string{"another service"}}},
		"overlong": {nfctest.Overlong, outcome{nfc.ErrProtocol, nil}},
		"silent":   {nfctest.Silent, outcome{vddk.ErrConnectionLost, []string{"greeting", "no answer"}}},
	} {
		t.Run(name, func(t *testing.T) {
			k := start(t, nfc.NBDSSL, 1<<20)
			k.nfc.Options.ConnectTimeout, k.nfc.Options.Retries = 200*time.Millisecond, 1
			k.SetScenario(nfctest.Scenario{Greeting: c.greeting})
			c.want.words = append(c.want.words, k.Addr().String())
			k.outcome(c.want)
		})
	}
}

func TestTickets(t *testing.T) {
	n := 0
	for _, c := range []struct {
		name  string
		spoil func(*kit, *nfc.Ticket)
		want  outcome
	}{
		{"SHA-1", func(*kit, *nfc.Ticket) {}, outcome{}},
		{"SHA-256", func(k *kit, x *nfc.Ticket) { x.Thumbprint = k.Thumbprint256() }, outcome{}},
		{"lower case without colons", func(k *kit, x *nfc.Ticket) {
			x.Thumbprint = strings.ToLower(strings.ReplaceAll(x.Thumbprint, ":", ""))
		}, outcome{}},
		{"PEM", func(k *kit, x *nfc.Ticket) { x.Thumbprint, x.Certificate = "", k.PEM() }, outcome{}},
		{"service with ssl", func(k *kit, x *nfc.Ticket) { x.Service += "ssl" }, outcome{}},
		{"wrong SHA-1", func(k *kit, x *nfc.Ticket) { x.Thumbprint = strings.Repeat("00:", 19) + "00" },
			outcome{nfc.ErrUntrusted, []string{"presents", "vSphere expects", "reconnect the host"}}},
		{"no thumbprint", func(k *kit, x *nfc.Ticket) { x.Thumbprint = "" }, outcome{nfc.ErrUntrusted, nil}},
		{"not a thumbprint", func(k *kit, x *nfc.Ticket) { x.Thumbprint = "hello" }, outcome{nfc.ErrUntrusted, nil}},
		{"not PEM", func(k *kit, x *nfc.Ticket) { x.Certificate = "hello" }, outcome{nfc.ErrUntrusted, nil}},
		{"no host", func(k *kit, x *nfc.Ticket) { x.Host = "" }, outcome{nil, []string{"names no host"}}},
		{"used once", func(k *kit, x *nfc.Ticket) {
			if n++; n%2 == 1 {
				x.SessionID += "used"
			}
		}, outcome{}},
		{"always refused", func(k *kit, x *nfc.Ticket) { x.SessionID += "used" }, outcome{vddk.ErrPermission, []string{"530"}}},
		{"injection", func(k *kit, x *nfc.Ticket) { x.Service = "nfc\r\nPROXY other" }, outcome{nil, []string{"line break"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			both(t, 1<<20, func(t *testing.T, k *kit) {
				k.spoil = func(x *nfc.Ticket) { c.spoil(k, x) }
				if c.want.err == nil && c.want.words != nil {
					if _, err := k.open(t.Context()); err == nil || !strings.Contains(err.Error(), c.want.words[0]) {
						t.Errorf("gives %v", err)
					}
					return
				}
				k.outcome(c.want)
			})
		})
	}
	t.Run("another host's PEM", func(t *testing.T) {
		k, other := start(t, nfc.NBDSSL, 1<<20), start(t, nfc.NBDSSL, 1<<20)
		k.spoil = func(x *nfc.Ticket) { x.Certificate = other.PEM() }
		k.outcome(outcome{nfc.ErrUntrusted, nil})
	})
	t.Run("no secret in any form", func(t *testing.T) {
		x := nfc.Ticket{Host: "esx1", SessionID: "s3cret", Service: "nfc"}
		for _, f := range []string{"%v", "%+v", "%#v", "%s"} {
			if s := fmt.Sprintf(f, x); strings.Contains(s, "s3cret") || !strings.Contains(s, "esx1:902") {
				t.Errorf("%s prints %s", f, s)
			}
		}
	})
	t.Run("refused by vSphere", func(t *testing.T) {
		k := start(t, nfc.NBD, 1<<20)
		k.nfc.Ticket = func(context.Context, vddk.Spec) (nfc.Ticket, error) {
			return nfc.Ticket{}, fmt.Errorf("NoPermission: %w", vddk.ErrPermission)
		}
		k.outcome(outcome{vddk.ErrPermission, []string{"DiskRandomRead"}})
	})
}

func TestUnreachable(t *testing.T) {
	k := start(t, nfc.NBD, 1<<20)
	k.spoil = func(x *nfc.Ticket) { x.Port = 1 } // nobody listens there
	_, err := k.open(t.Context())
	if err == nil || !strings.Contains(err.Error(), k.Addr().IP.String()+":1") || !strings.Contains(err.Error(), "ESXi host itself") {
		t.Errorf("gives %v", err)
	}
}

func TestTLS(t *testing.T) {
	for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(v), func(t *testing.T) {
			both(t, 1<<20, func(t *testing.T, k *kit) {
				// What crypto/tls reads ahead behind the first session's last record would be lost: data that come
				// together with it show whether it does.
				for _, early := range []bool{false, true} {
					k.SetScenario(nfctest.Scenario{MinTLS: v, MaxTLS: v, EarlyData: early})
					k.outcome(outcome{})
				}
			})
		})
	}
	t.Run("another certificate for the second session", func(t *testing.T) {
		k := start(t, nfc.NBDSSL, 1<<20)
		k.SetScenario(nfctest.Scenario{OtherCert: true})
		k.outcome(outcome{nfc.ErrUntrusted, []string{"second TLS"}})
	})
}

func TestProxyRefused(t *testing.T) {
	for reply, want := range map[string]outcome{
		"530 Please login":   {vddk.ErrPermission, []string{"530"}},
		"501 No such thing":  {vddk.ErrUnsupported, []string{"501"}},
		"close":              {vddk.ErrConnectionLost, []string{"PROXY vpxa-nfc"}},
		"what is that":       {nfc.ErrProtocol, nil},
		"220 another banner": {vddk.ErrUnsupported, []string{"220"}},
	} {
		t.Run(reply[:3], func(t *testing.T) {
			both(t, 1<<20, func(t *testing.T, k *kit) {
				k.nfc.Options.Retries = 2
				k.SetScenario(nfctest.Scenario{Proxy: reply})
				k.outcome(want)
			})
		})
	}
}

func TestClassicHandshake(t *testing.T) {
	const random = 43
	for _, m := range []uint32{random, 33, 51, 54, 55, 52} {
		want := outcome{vddk.ErrUnsupported, []string{"handshake"}}
		cut := outcome{vddk.ErrConnectionLost, []string{"handshake"}}
		if m == random { // the client does without, with a new ticket
			want, cut = outcome{}, outcome{}
		}
		both(t, 1<<20, func(t *testing.T, k *kit) {
			k.nfc.Options.Retries = 2
			k.SetScenario(nfctest.Scenario{RefuseAt: m})
			k.outcome(want)
		})
		both(t, 1<<20, func(t *testing.T, k *kit) {
			k.nfc.Options.Retries = 2
			k.SetScenario(nfctest.Scenario{CutAt: m})
			k.outcome(cut)
		})
	}
	t.Run("without CLIENTRANDOM", func(t *testing.T) {
		both(t, 1<<20, func(t *testing.T, k *kit) {
			k.SetScenario(nfctest.Scenario{NoRandom: true, AckLate: true, Version: 7})
			k.outcome(outcome{})
			before := k.Stats().Connections
			k.outcome(outcome{})
			if n := k.Stats().Connections - before; before != 2 || n != 1 {
				t.Errorf("%d connections for the first disk, %d for the second: the host's habit is not remembered", before, n)
			}
		})
	})
	for _, v := range []uint32{2, 3, 7, 8, 9, 11, 12} {
		t.Run(fmt.Sprintf("version %d", v), func(t *testing.T) {
			both(t, 1<<20, func(t *testing.T, k *kit) {
				for _, late := range []bool{false, true} {
					k.SetScenario(nfctest.Scenario{Version: v, AckLate: late})
					want := outcome{}
					if v < 3 {
						want = outcome{vddk.ErrUnsupported, []string{"6.5"}}
					}
					k.outcome(want)
				}
			})
		})
	}
}

func TestSessionMemory(t *testing.T) {
	t.Run("smaller buffers", func(t *testing.T) {
		both(t, 1<<20, func(t *testing.T, k *kit) {
			k.SetScenario(nfctest.Scenario{MaxBuffer: 64 << 10, Unfriendly: true})
			k.outcome(outcome{})
			if s := k.Stats(); s.Fragments != 16 || s.Connections != 1 {
				t.Errorf("%d fragments on %d connections", s.Fragments, s.Connections)
			}
		})
	})
	t.Run("exhausted", func(t *testing.T) {
		k := start(t, nfc.NBDSSL, 1<<20)
		k.SetScenario(nfctest.Scenario{Memory: 1})
		k.nfc.Options.Retries = 2
		k.outcome(outcome{vddk.ErrHostMemory, []string{"48 MB"}})
	})
	t.Run("free again", func(t *testing.T) {
		k := start(t, nfc.NBDSSL, 1<<20)
		k.nfc.Options.Buffers, k.nfc.Options.Buffer = 1, 64<<10
		k.nfc.Options.Retries = 1000
		k.SetScenario(nfctest.Scenario{Memory: 64 << 10})
		first := k.must()
		opened := make(chan *nfc.Disk, 1)
		go func() {
			d, err := k.open(t.Context())
			if err != nil {
				t.Error(err)
			}
			opened <- d
		}()
		k.await("ERROR: NFC error 5")
		if err := first.Close(); err != nil {
			t.Error(err)
		}
		d := <-opened
		k.all(d)
		k.close(d)
	})
}

func TestOpenRefused(t *testing.T) {
	for name, c := range map[string]struct {
		failure nfctest.Failure
		want    outcome
	}{
		"permission": {nfctest.Failure{Code: 11, Text: nfctest.TextPermission}, outcome{vddk.ErrPermission, []string{"DiskRandomRead"}}},
		"locked":     {nfctest.Failure{Code: 1, Text: nfctest.TextLocked}, outcome{vddk.ErrLocked, []string{"below the snapshot"}}},
		"multiwrite": {nfctest.Failure{Code: 1, Text: nfctest.TextMultiwrite}, outcome{vddk.ErrLocked, nil}},
		"not found":  {nfctest.Failure{Code: 1, Text: nfctest.TextNotFound}, outcome{vddk.ErrNotFound, []string{"another datastore"}}},
		"memory":     {nfctest.Failure{Code: 5, Text: fmt.Sprintf(nfctest.TextMemory, 24117272)}, outcome{vddk.ErrHostMemory, []string{"fewer disks"}}},
	} {
		for _, zero := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s zero reply %v", name, zero), func(t *testing.T) {
				both(t, 1<<20, func(t *testing.T, k *kit) {
					k.nfc.Options.Retries = 1
					k.SetScenario(nfctest.Scenario{OpenFails: &c.failure, ZeroReply: zero})
					words := append(slices.Clone(c.want.words), c.failure.Text, path, k.Addr().String())
					k.outcome(outcome{c.want.err, words})
				})
			})
		}
	}
	t.Run("writing with a ticket for reading", func(t *testing.T) {
		k := start(t, nfc.NBDSSL, 1<<20)
		k.nfc.Ticket = func(_ context.Context, s vddk.Spec) (nfc.Ticket, error) {
			return k.Grant(nfctest.Grant{VM: s.VM}), nil
		}
		k.write = true
		k.outcome(outcome{vddk.ErrPermission, []string{"DiskRandomAccess"}})
	})
	t.Run("odd text", func(t *testing.T) {
		k := start(t, nfc.NBDSSL, 1<<20)
		k.SetScenario(nfctest.Scenario{OpenFails: &nfctest.Failure{Code: 1, Text: "a\x00b\x1b[2Jc " + strings.Repeat("long ", 1000)}})
		_, err := k.open(t.Context())
		if err == nil || len(err.Error()) > 1000 || strings.ContainsAny(err.Error(), "\x00\x1b") {
			t.Errorf("gives %v", err)
		}
	})
}

func TestWhatIsOpened(t *testing.T) {
	for name, c := range map[string]struct {
		scenario nfctest.Scenario
		want     outcome
	}{
		"sector size 0":     {nfctest.Scenario{}, outcome{}},
		"sector size 512":   {nfctest.Scenario{SectorSize: 512}, outcome{}},
		"sector size 4096":  {nfctest.Scenario{SectorSize: 4096}, outcome{vddk.ErrUnsupported, []string{"4096"}}},
		"delta disk":        {nfctest.Scenario{FileType: 3}, outcome{}},
		"text file":         {nfctest.Scenario{FileType: 1}, outcome{vddk.ErrUnsupported, []string{"type 1"}}},
		"not whole sectors": {nfctest.Scenario{GrowBy: 100}, outcome{nfc.ErrProtocol, nil}},
	} {
		t.Run(name, func(t *testing.T) {
			k := start(t, nfc.NBDSSL, 3<<20+512)
			k.SetScenario(c.scenario)
			k.outcome(c.want)
		})
	}
	t.Run("another capacity than vSphere says", func(t *testing.T) {
		k := start(t, nfc.NBDSSL, 1<<20)
		s := k.spec()
		s.Capacity = 2 << 20
		if _, err := k.nfc.Open(t.Context(), s); err == nil || !strings.Contains(err.Error(), "2097152") {
			t.Errorf("gives %v", err)
		}
		k.quiet()
	})
	t.Run("bad options", func(t *testing.T) {
		for _, o := range []nfc.Options{{Buffer: 1}, {Buffer: 4 << 20}, {Buffers: 17}, {Depth: 33}, {MaxRequest: 100}, {Compression: 9}} {
			k := start(t, nfc.NBDSSL, 1<<20)
			k.nfc.Options = o
			if _, err := k.open(t.Context()); err == nil {
				t.Errorf("%+v is accepted", o)
			}
		}
	})
	t.Run("bad mode", func(t *testing.T) {
		k := start(t, "hotadd", 1<<20)
		if _, err := k.open(t.Context()); !errors.Is(err, vddk.ErrUnsupported) {
			t.Errorf("gives %v", err)
		}
	})
}

func TestConnectionLimit(t *testing.T) {
	k := start(t, nfc.NBDSSL, 1<<20)
	k.nfc.Options.Retries = 1000
	k.SetScenario(nfctest.Scenario{Connections: 1})
	first := k.must()
	opened := make(chan *nfc.Disk, 1)
	go func() {
		d, err := k.open(t.Context())
		if err != nil {
			t.Error(err)
		}
		opened <- d
	}()
	k.await("trying again")
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	d := <-opened
	k.all(d)
	k.close(d)
}
