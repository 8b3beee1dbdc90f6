// Command nonewprivs prints its effective user ID. It is installed setuid root,
// so that the ID tells whether no_new_privs was set.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Printf("Effective uid: %d\n", os.Geteuid())
}
