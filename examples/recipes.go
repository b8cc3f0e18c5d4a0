// Package examples has programs that show how servers run behind handfast, each in its own folder, and the page that
// lists them.
package examples

import _ "embed"

// Recipes is README.md: for each kind of server the command, and for what is around it the way. handfast shows it offline.
//
//go:embed README.md
var Recipes string
