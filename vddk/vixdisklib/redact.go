package vixdisklib

import (
	"html"
	"net/url"
	"slices"
	"strings"
)

// redactor takes secrets out of text, in the spellings in which the library and its HTTP and XML show them.
type redactor struct{ r *strings.Replacer }

func newRedactor(secrets ...string) redactor {
	var all []string
	for _, s := range secrets {
		if s != "" {
			all = append(all, s, url.QueryEscape(s), url.PathEscape(s), html.EscapeString(s))
		}
	}
	// Of two that begin alike the longer is replaced: nothing of it stays.
	slices.SortFunc(all, func(a, b string) int { return len(b) - len(a) })
	var pairs []string
	for _, s := range slices.Compact(all) {
		pairs = append(pairs, s, "[redacted]")
	}
	return redactor{strings.NewReplacer(pairs...)}
}

func (r redactor) clean(s string) string { return r.r.Replace(s) }
