package vixtest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/vmkeep/vmkeep/vddk"
)

// Keeper opens disks for the library: it gives the file with the content of the disk at a datastore path, and what is
// called when the library has closed it or its process has ended. Errors of package vddk become the library's codes.
type Keeper func(path string, write bool) (file string, release func() error, err error)

// Keep has the library serve the disks of a keeper, instead of those of [Library.Add], until the test ends.
func (l *Library) Keep(open Keeper) {
	l.t.Helper()
	dir, err := os.MkdirTemp("", "vix") // the path of a socket is short
	l.must(err)
	socket := filepath.Join(dir, "keeper")
	listener, err := net.Listen("unix", socket)
	l.must(err)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return // closed
			}
			serving.Go(func() {
				defer c.Close()
				if err := keep(c, open); err != nil {
					l.t.Error("a disk of the library:", err)
				}
			})
		}
	})
	l.t.Cleanup(func() {
		if err := errors.Join(listener.Close(), os.RemoveAll(dir)); err != nil {
			l.t.Error(err)
		}
		serving.Wait()
	})
	l.set = append(l.set, "keeper="+socket)
	l.Control()
}

// keep serves one disk for as long as it is open.
func keep(c net.Conn, open Keeper) error {
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return nil // the process ended
	}
	mode, path, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
	file, release, err := open(path, mode == "w")
	if err != nil {
		_, _ = fmt.Fprintln(c, code(err)) // who is gone needs no answer
		return nil
	}
	if _, err := fmt.Fprintln(c, 0, file); err == nil {
		_, _ = io.Copy(io.Discard, c) // until it is closed, however that comes
	}
	return release()
}

// code is the library's error for a keeper's, as the header numbers them.
func code(err error) int {
	switch {
	case errors.Is(err, vddk.ErrNotFound):
		return 4 // VIX_E_FILE_NOT_FOUND
	case errors.Is(err, vddk.ErrLocked):
		return 15 // FILE_LOCKED of the header
	case errors.Is(err, vddk.ErrUnsupported):
		return 6 // VIX_E_NOT_SUPPORTED
	}
	return 13 // VIX_E_FILE_ACCESS_ERROR
}
