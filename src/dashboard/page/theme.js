// Before anything is painted: the scheme that was chosen here, or the system's.
try {
  const chosen = localStorage.getItem('lighter-theme')
  if (chosen === 'light' || chosen === 'dark') document.documentElement.dataset.theme = chosen
} catch {
  // Storage may be forbidden; then the system's it is.
}
