package rest_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/backend/rest"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// listing is a server that knows one answer to GET, and of every file that it has 7 bytes.
type listing struct {
	media string
	body  []byte
}

func (l listing) RoundTrip(r *http.Request) (*http.Response, error) {
	resp := &http.Response{StatusCode: http.StatusOK, Status: "200 OK", Body: http.NoBody, ContentLength: 7, Request: r, Header: http.Header{}}
	if r.Method == http.MethodGet {
		resp.Header.Set("Content-Type", l.media)
		resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(l.body)), int64(len(l.body))
	}
	return resp, nil
}

// expected is what the whole listing says at once; ok is false if it is none.
func (l listing) expected() (infos []backend.FileInfo, ok bool) {
	dec := json.NewDecoder(bytes.NewReader(l.body))
	var err error
	if l.media == "" {
		var names []string
		err = dec.Decode(&names)
		for _, name := range names {
			infos = append(infos, backend.FileInfo{Name: name, Size: 7})
		}
	} else {
		err = dec.Decode(&infos)
	}
	infos = slices.DeleteFunc(infos, func(i backend.FileInfo) bool { return !backend.IsName(i.Name) })
	return infos, err == nil && !slices.ContainsFunc(infos, func(i backend.FileInfo) bool { return i.Size < 0 })
}

// Listings are read as they come; that must tell the same files as reading them at once, and no file of a listing that is none.
func FuzzListing(f *testing.F) {
	name := strings.Repeat("0123456789abcdef", 4)
	for _, body := range []string{
		`[{"name":"` + name + `","size":1000},{"name":"x-tmp-1","size":3},{"size":1002,"more":{},"name":"` + name + `"}]`,
		`["` + name + `","README",null]`, `[{"name":"` + name + `","size":-1}]`, "null", "[]", "[{},]", `["` + name + `"`, "<html>",
	} {
		f.Add([]byte(body), true)
		f.Add([]byte(body), false)
	}
	f.Fuzz(func(t *testing.T, body []byte, v2 bool) {
		l := listing{body: body}
		if v2 {
			l.media = "application/vnd.x.restic.rest.v2"
		}
		u, err := url.Parse("http://server/")
		if err != nil {
			t.Fatal(err)
		}
		b, err := rest.Open(rest.Config{URL: u, Transport: l})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		var got []backend.FileInfo
		err = b.List(t.Context(), restic.PackFile, func(info backend.FileInfo) error {
			got = append(got, info)
			return nil
		})
		want, ok := l.expected()
		if (err == nil) != ok || ok && !slices.Equal(got, want) {
			t.Fatalf("%q: %v, %v; want %v, %v", body, got, err, want, ok)
		}
	})
}
