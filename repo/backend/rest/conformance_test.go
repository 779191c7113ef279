package rest_test

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"testing"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest/peers"
	"github.com/vmkeep/vmkeep/repo/backend/rest"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// config reaches a repository of its own below the peer's location.
func config(t *testing.T, p peers.Peer) rest.Config {
	t.Helper()
	u, err := url.Parse(strings.TrimPrefix(p.Location, "rest:"))
	if err != nil {
		t.Fatal(err)
	}
	u = u.JoinPath(strings.NewReplacer("/", "-", "'", "").Replace(t.Name()))
	return rest.Config{URL: u, Transport: http.DefaultTransport.(*http.Transport).Clone()}
}

func create(t *testing.T, p peers.Peer) backend.Backend {
	t.Helper()
	b, err := rest.Create(t.Context(), config(t, p))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRestServerKeepsTheGuarantees(t *testing.T) {
	p := peers.RestServer(t)
	backendtest.Run(t, func(t *testing.T) backend.Backend { return create(t, p) })
}

func TestRcloneKeepsTheGuarantees(t *testing.T) {
	p := peers.Rclone(t)
	backendtest.Run(t, func(t *testing.T) backend.Backend { return create(t, p) })
}

func TestAppendOnlyRestServerKeepsTheGuarantees(t *testing.T) {
	p := peers.RestServer(t, "--append-only")
	backendtest.RunAppendOnly(t, func(t *testing.T) backend.Backend { return create(t, p) })
}

func TestAppendOnlyRcloneKeepsTheGuarantees(t *testing.T) {
	p := peers.Rclone(t, "--append-only")
	backendtest.RunAppendOnly(t, func(t *testing.T) backend.Backend { return create(t, p) })
}

func TestFullServerSaysThatThereIsNoSpace(t *testing.T) {
	b := create(t, peers.RestServer(t, "--max-size", "3000"))
	defer b.Close()
	data := backendtest.Bytes(5000)
	h := backendtest.HandleOf(restic.PackFile, data)
	err := b.Save(t.Context(), h, data)
	if !errors.Is(err, syscall.ENOSPC) || !errors.Is(err, backend.ErrPermanent) {
		t.Errorf("Save: %v", err)
	}
	if _, err := b.Stat(t.Context(), h); !errors.Is(err, backend.ErrNotExist) {
		t.Errorf("Stat after a refused Save: %v", err)
	}
}
