package lab

import (
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
)

// serveFolder is the datastore's HTTP service. Unlike the simulator's it asks who is there, deletes when asked to
// delete, and refuses the disk files of running machines, as ESXi does.
func (s *sim) serveFolder(w http.ResponseWriter, r *http.Request) {
	user, ok := s.httpUser(r)
	if !ok {
		w.Header().Set("WWW-Authenticate", `Basic realm="VMware HTTP server"`)
		http.Error(w, "authentication required", http.StatusUnauthorized)
		return
	}
	for _, need := range []string{"Datastore.Browse", "Datastore.FileManagement"} {
		if !s.may(user, need) {
			http.Error(w, "no permission: "+need, http.StatusForbidden)
			return
		}
	}
	dsPath := joinPath(r.URL.Query().Get("dsName"), strings.TrimPrefix(r.URL.Path, "/folder/"))
	p, err := s.store.local(dsPath)
	if err != nil {
		http.NotFound(w, r)
		return
	}
	if s.locked(dsPath) {
		http.Error(w, "the file is locked", http.StatusInternalServerError) // what ESXi answers
		return
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		f, err := os.Open(p)
		if err != nil {
			http.NotFound(w, r)
			return
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil || st.IsDir() {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", st.ModTime(), f)
	case http.MethodPost, http.MethodPut:
		if _, err := os.Stat(p); err == nil && r.Method == http.MethodPost {
			http.Error(w, "the file exists", http.StatusConflict)
			return
		}
		if err := receive(p, r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.WriteHeader(http.StatusCreated)
	case http.MethodDelete:
		switch err := os.Remove(p); {
		case errors.Is(err, fs.ErrNotExist):
			http.NotFound(w, r)
		case err != nil:
			http.Error(w, err.Error(), http.StatusInternalServerError)
		default:
			s.store.forgetUnder(dsPath)
			w.WriteHeader(http.StatusNoContent)
		}
	}
}

// receive writes a file whole or not at all.
func receive(p string, body io.Reader) (err error) {
	if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(p), ".upload-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if _, err = io.Copy(f, body); err != nil {
		_ = f.Close()
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), p)
}

// httpUser is the account of an HTTP request: of its session, or by basic authentication.
func (s *sim) httpUser(r *http.Request) (string, bool) {
	if sess := s.sessionOf(r); sess != nil {
		return sess.UserName, true
	}
	if user, password, ok := r.BasicAuth(); ok && s.checkPassword(user, password) {
		return user, true
	}
	return "", false
}

// locked tells whether the file at the datastore path is the content of a link that a running machine or an NFC
// client holds.
func (s *sim) locked(dsPath string) bool {
	for _, suffix := range []string{"-flat.vmdk", "-sesparse.vmdk"} {
		stem, ok := strings.CutSuffix(dsPath, suffix)
		if !ok {
			continue
		}
		if l := s.store.find(stem + ".vmdk"); l != nil {
			return s.store.held(l) || s.runningWith(l, ref{}) != nil
		}
	}
	return false
}
