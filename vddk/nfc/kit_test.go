package nfc_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vddk/nfc"
	"github.com/vmkeep/vmkeep/vddk/nfc/nfctest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const path = "[ds1 (a)] web/web.vmdk"

// kit is a server with one disk, a transport to it, and everything either side logged.
type kit struct {
	*nfctest.Server
	t       testing.TB
	store   *nfctest.Memory
	disk    *nfctest.MemoryDisk
	content []byte
	nfc     *nfc.Transport

	mu      sync.Mutex
	news    *sync.Cond
	log     bytes.Buffer
	tickets []nfc.Ticket
	write   bool
	spoil   func(*nfc.Ticket) // changes tickets before they are used
}

func (k *kit) Write(p []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	defer k.news.Broadcast()
	return k.log.Write(p)
}

// await waits until something was logged.
func (k *kit) await(s string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for !strings.Contains(k.log.String(), s) {
		k.news.Wait()
	}
}

// start makes a kit; at the end of the test every client must have left as it should, and no secret be logged.
func start(t testing.TB, mode nfc.Mode, size int) *kit {
	t.Helper()
	k := &kit{t: t, store: &nfctest.Memory{}}
	k.news = sync.NewCond(&k.mu)
	k.disk = k.store.Add(path, int64(size))
	k.content = make([]byte, size)
	fill(k.content)
	if _, err := k.disk.WriteAt(k.content, 0); err != nil {
		t.Fatal(err)
	}
	var err error
	k.Server, err = nfctest.Start(nfctest.Config{Store: k.store, Events: func(e nfctest.Event) {
		fmt.Fprintln(k, e)
	}})
	if err != nil {
		t.Fatal(err)
	}
	k.nfc = &nfc.Transport{
		Mode: mode, Ticket: k.ticket, Log: slog.New(slog.NewTextHandler(k, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Options: nfc.Options{Backoff: time.Millisecond, ConnectTimeout: 10 * time.Second, CloseTimeout: 30 * time.Second},
	}
	t.Cleanup(func() {
		if err := k.Server.Close(); err != nil {
			t.Error(err)
		}
		k.secret(k.log.String())
		if t.Failed() {
			t.Log(k.log.String())
		}
	})
	return k
}

// fill makes content that every compression can do something with: random bytes, text, zeros.
func fill(p []byte) {
	r := rand.NewChaCha8([32]byte{1})
	for i := 0; i < len(p); i += 4096 {
		q := p[i:min(i+4096, len(p))]
		switch i / 4096 % 4 {
		case 0:
			r.Read(q)
		case 1:
			for j := range q {
				q[j] = "all work and no play makes backup a dull job. "[(i+j)%46]
			}
		case 2:
			r.Read(q[:len(q)/3])
		}
	}
}

func (k *kit) ticket(_ context.Context, s vddk.Spec) (nfc.Ticket, error) {
	x := k.Grant(nfctest.Grant{VM: s.VM, Key: s.Key, Write: s.Write})
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.spoil != nil {
		k.spoil(&x)
	}
	k.tickets = append(k.tickets, x)
	return x, nil
}

// secret fails the test if text has the session id of a ticket.
func (k *kit) secret(text string) {
	k.t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, x := range k.tickets {
		if strings.Contains(text, x.SessionID) {
			k.t.Errorf("a session id shows in: %.300s", text)
			return
		}
	}
}

func (k *kit) spec() vddk.Spec {
	return vddk.Spec{VM: "vm-7", Snapshot: "snapshot-3", Key: 2000, Path: path, Write: k.write}
}

func (k *kit) open(ctx context.Context) (*nfc.Disk, error) {
	d, err := k.nfc.Open(ctx, k.spec())
	if err != nil {
		k.secret(err.Error())
		return nil, err
	}
	return d.(*nfc.Disk), nil
}

func (k *kit) must() *nfc.Disk {
	k.t.Helper()
	d, err := k.open(k.t.Context())
	if err != nil {
		k.t.Fatal(err)
	}
	return d
}

// close closes d, and wants no word from either side.
func (k *kit) close(d *nfc.Disk) {
	k.t.Helper()
	if err := d.Close(); err != nil {
		k.t.Errorf("close: %v", err)
	}
	k.quiet()
}

// quiet wants every client to have left as it should.
func (k *kit) quiet() {
	k.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := k.Quiet(ctx); err != nil {
		k.t.Errorf("clients left untidily: %v", err)
	}
}

// quietAnyway waits for all to be gone, however they went.
func (k *kit) quietAnyway() { _ = k.Quiet(k.t.Context()) }

// all reads the whole disk and compares.
func (k *kit) all(d *nfc.Disk) {
	k.t.Helper()
	got := make([]byte, len(k.content))
	if _, err := d.ReadAt(got, 0); err != nil {
		k.t.Fatalf("read all: %v", err)
	}
	if !bytes.Equal(got, k.content) {
		k.t.Fatal("content differs")
	}
}

var modes = []nfc.Mode{nfc.NBD, nfc.NBDSSL}

// both runs a test over clear text and TLS.
func both(t *testing.T, size int, test func(*testing.T, *kit)) {
	t.Helper()
	for _, m := range modes {
		t.Run(string(m), func(t *testing.T) { test(t, start(t, m, size)) })
	}
}
