package location_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/backend/location"
)

func TestLocationsAreRestics(t *testing.T) {
	for text, want := range map[string]string{ // what String gives
		"/srv/repo":       "/srv/repo",
		"relative/repo":   "relative/repo",
		"./with:colon":    "local:./with:colon",
		"/with:colon":     "local:/with:colon",
		"local:/srv/repo": "/srv/repo",
		"local:a:b":       "local:a:b",
		`C:\repo`:         `local:C:\repo`,

		"rest:http://host:8000/":                       "rest:http://host:8000/",
		"rest:https://host/path":                       "rest:https://host/path/",
		"rest:http://user:secret@host:8000/p/":         "rest:http://user:***@host:8000/p/",
		"rest:http://us%40er:sec%2Fret@host/":          "rest:http://us%40er:***@host/",
		"rest:http://user@host/":                       "rest:http://user@host/",
		"rest:http+unix:///run/rest.sock:/my/repo":     "rest:http+unix:///run/rest.sock:/my/repo/",
		"rest:http+unix://user:secret@/run/rest.sock:": "rest:http+unix://user:***@/run/rest.sock:/",

		"s3:https://host:9000/bucket/some/prefix/": "s3:https://host:9000/bucket/some/prefix",
		"s3:http://host/bucket":                    "s3:http://host/bucket",
		"s3:s3.amazonaws.com/bucket/a//b":          "s3:https://s3.amazonaws.com/bucket/a/b",
		"s3://host/bucket/":                        "s3:https://host/bucket",
		"s3:host/bucket/../../x":                   "s3:https://host/bucket/x",

		"sftp:user@host:/srv/repo":             "sftp:user@host:/srv/repo",
		"sftp:host:relative":                   "sftp:host:relative",
		"sftp:user@domain@host:/srv":           "sftp:user@domain@host:/srv",
		"sftp://user@host:2222//srv/repo":      "sftp://user@host:2222//srv/repo",
		"sftp://user@host/relative":            "sftp://user@host/relative",
		"sftp://[::1]:22//srv":                 "sftp://[::1]:22//srv",
		"sftp://user@[fe80::1]//srv/repo/":     "sftp://user@[fe80::1]//srv/repo",
		"rclone:b2prod:yggdrasil/foo/bar/baz":  "rclone:b2prod:yggdrasil/foo/bar/baz",
		"rclone::local:/srv/with space/things": "rclone::local:/srv/with space/things",
	} {
		l, err := location.Parse(text)
		if err != nil {
			t.Errorf("Parse(%q): %v", text, err)
			continue
		}
		if got := l.String(); got != want {
			t.Errorf("Parse(%q) is %q, want %q", text, got, want)
		}
		again, err := location.Parse(l.String())
		if err != nil || again.String() != l.String() {
			t.Errorf("Parse(%q) is %q, %v", l.String(), again, err)
		}
		for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
			if shown := fmt.Sprintf(format, l); strings.Contains(shown, "secret") || strings.Contains(shown, "sec/ret") {
				t.Errorf("%s shows the password: %s", format, shown)
			}
		}
	}
}

func TestBadLocationsAreRefusedWithoutShowingThem(t *testing.T) {
	for text, remedy := range map[string]string{
		"":                         "RESTIC_REPOSITORY",
		"local:":                   "directory",
		"azure:container:/secret":  "rclone",
		"b2:secret":                "rclone",
		"ftp://user:secret@host/":  "local:/path",
		"rest:":                    "rest:https://host:8000/path/",
		"rest:host:8000/secret":    "http",
		"rest:http://:8000/secret": "http",
		"rest:http://user:secr/secret@host:8000/": "percent-encoded",
		"rest:http://user:%zzsecret@host/":        "percent-encoded",
		"rest:http+unix:///secret":                "socket",
		"s3:host":                                 "bucket",
		"s3:https:///bucket":                      "host",
		"s3:https://key:secret@host/bucket":       "AWS_SECRET_ACCESS_KEY",
		"sftp:host":                               "sftp:user@host:/path",
		"sftp://user:secret@host/path":            "key",
		"sftp:user@:/path":                        "host",
		"sftp:user@host:":                         "path",
		"sftp:user@host:~/secret":                 "home",
		"sftp:-oProxyCommand=secret:/path":        "host",
		"sftp://user:se^cret@ho st//secret":       "percent-encoded",
		"rclone:":                                 "remote",
		"rclone:--config=secret":                  "remote",
	} {
		l, err := location.Parse(text)
		if !errors.Is(err, backend.ErrPermanent) {
			t.Errorf("Parse(%q) is %q, %v", text, l, err)
			continue
		}
		if !strings.Contains(err.Error(), remedy) {
			t.Errorf("Parse(%q): %v; want a word about %q", text, err, remedy)
		}
		if strings.Contains(err.Error(), "secret") {
			t.Errorf("Parse(%q) repeats the text: %v", text, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"/a", "rest:http://a:b@c/", "s3:h/b/p", "sftp://u@h:1//p", "sftp:u@h:p", "rclone:r:p", "rest:http+unix:///a:/b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		l, err := location.Parse(s)
		if err != nil {
			return
		}
		again, err := location.Parse(l.String())
		if err != nil || again.String() != l.String() {
			t.Errorf("%q prints as %q, which parses as %q, %v", s, l, again, err)
		}
	})
}
