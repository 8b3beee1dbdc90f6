package kubernetes

// rows are the assertions of table.txt, by the name of their row.
var rows = map[string]func(*cluster){}
