(* C16, the absorbing band of the sign rule for unequal targets: any targets M_k that sum to K T, the same scores at
   every step, m = m(2u), any K <= E.

   If no load is off its target by less than delta unless it is on it, delta <= 1, then every band of m (E - 1) - delta
   or more absorbs. delta = 0 serves for all targets, and delta = 1/d for targets that are multiples of 1/d. *)

From mathcomp Require Import all_ssreflect ssralg ssrnum ssrint zify ring.
From alflb Require Import definitions topk c3_preference_rule c4_absorbing_band.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section UnequalTargets.
Variables (R : realFieldType) (T E K : nat) (scores : 'I_T -> 'I_E -> R) (u : R) (M : 'I_E -> R).
Hypotheses (KE : (K <= E)%N) (u0 : 0 < u) (total_M : \sum_k M k = (K * T)%:R).
Implicit Types (p : 'I_E -> R) (j k : 'I_E).
Local Notation A := (load K scores).
Local Notation step := (sign_step K scores M u).
Local Notation m := (multiplicity scores (2%:R * u)).
Local Notation off p k := ((A p k)%:R - M k).

Lemma sum_off p : \sum_k off p k = 0.
Proof. by rewrite sumrB -natr_sum (sum_loads scores KE p) total_M subrr. Qed.

Lemma sg_off p k : Num.sg (M k - (A p k)%:R) = - Num.sg (off p k).
Proof. by rewrite -opprB sgrN. Qed.

Lemma someone_over p j : off p j < 0 -> exists k, 0 < off p k.
Proof.
move=> under; apply/existsP; case: existsP => // none.
have ge0 k : true -> 0 <= - off p k by rewrite oppr_ge0 leNgt; case: ltP => // h; case: none; exists k.
have sum0 : \sum_k - off p k = 0 by rewrite sumrN sum_off oppr0.
by move: under; rewrite -[off p j]opprK (psumr_eq0P ge0 sum0) // oppr0 ltxx.
Qed.

Lemma someone_under p j : 0 < off p j -> exists k, off p k < 0.
Proof.
move=> over; apply/existsP; case: existsP => // none.
have ge0 k : true -> 0 <= off p k by rewrite leNgt; case: ltP => // h; case: none; exists k.
by move: over; rewrite (psumr_eq0P ge0 (sum_off p)) // ltxx.
Qed.

Lemma off_step p k : off (step p) k = off p k + #|lost K scores (step p) p k|%:R - #|lost K scores p (step p) k|%:R.
Proof.
have := load_lost scores KE u0 p (step p) k => /(congr1 (fun n : nat => n%:R : R)); rewrite !natrD => h.
by apply: (addIr (M k + #|lost K scores p (step p) k|%:R)); rewrite addrA subrK h; ring.
Qed.

(* What comes to k or goes from it, by the number of experts that may trade with it. *)
Lemma traded_le (P : pred 'I_E) (n : nat) c : (n <= m * #|[set j | P j]|)%N -> (#|[set j | P j]| <= c)%N ->
  n%:R <= m%:R * c%:R :> R.
Proof. by move=> n_le few; rewrite -natrM ler_nat (leq_trans n_le) // leq_mul2l few orbT. Qed.

Variables (delta b : R).
Hypotheses (delta01 : 0 <= delta <= 1) (grid : forall p k, off p k != 0 -> delta <= `|off p k|).
Hypothesis band : m%:R * (E%:R - 1) - delta <= b.

Lemma traded_by_all (P : pred 'I_E) (n : nat) k : (n <= m * #|[set j | P j]|)%N -> ~~ P k ->
  n%:R - delta <= b.
Proof.
move=> n_le Pk; apply: le_trans band; rewrite ler_add2r; apply: le_trans (traded_le n_le (card_without Pk)) _.
by rewrite natrB ?(num_experts_gt0 k).
Qed.

Lemma traded_by_some (P : pred 'I_E) (n : nat) j k : (n <= m * #|[set i | P i]|)%N -> j != k -> ~~ P j -> ~~ P k ->
  n%:R <= b.
Proof.
move=> n_le jk Pj Pk; apply: le_trans band; apply: le_trans (traded_le n_le (card_without_two jk Pj Pk)) _.
have E2 : (2 <= E)%N by have := max_card [set j; k]; rewrite cards2 jk card_ord.
have /andP[_ delta1] := delta01; have m1 : 1 <= m%:R :> R by rewrite ler1n multiplicity_gt0.
rewrite natrB // -subr_ge0.
have -> : m%:R * (E%:R - 1) - delta - m%:R * (E%:R - 2%:R) = (m%:R - 1) + (1 - delta) :> R by ring.
by rewrite addr_ge0 // subr_ge0.
Qed.

Theorem unequal_band p k : `|off p k| <= b -> `|off (step p) k| <= b.
Proof.
have gained := gained_le scores KE u0 M p k; have lost := lost_le scores KE u0 M p k.
rewrite !ler_norml => /andP[low high]; rewrite off_step.
set g := #|_| in gained *; set l := #|_| in lost *.
have g0 : 0 <= g%:R :> R by rewrite ler0n.
have l0 : 0 <= l%:R :> R by rewrite ler0n.
have [under|over|balanced] := ltgtP (off p k) 0.
- have l_0 : l = 0%N.
    apply/eqP; rewrite -leqn0; apply: leq_trans lost _; rewrite leqn0 muln_eq0; apply/orP; right.
    rewrite cards_eq0; apply/eqP/setP=> j; rewrite !inE !sg_off (ltr0_sg under) opprK.
    by apply/negbTE; rewrite -leNgt ler_oppl; case/andP: (sg_bounds (off p j)).
  have := grid (ltr0_neq0 under); rewrite ltr0_norm // => far.
  rewrite l_0 subr0 (le_trans low) ?ler_addl //=.
  have := traded_by_all (k := k) gained; rewrite ltxx => /(_ isT); apply: le_trans.
  by rewrite addrC ler_add2l ler_oppr.
- have g_0 : g = 0%N.
    apply/eqP; rewrite -leqn0; apply: leq_trans gained _; rewrite leqn0 muln_eq0; apply/orP; right.
    rewrite cards_eq0; apply/eqP/setP=> j; rewrite !inE !sg_off (gtr0_sg over).
    by apply/negbTE; rewrite -leNgt ler_opp2; case/andP: (sg_bounds (off p j)).
  have := grid (lt0r_neq0 over); rewrite gtr0_norm // => far.
  rewrite g_0 addr0 ler_subl_addr (le_trans high) ?ler_addl ?andbT // ler_oppl opprB.
  have := traded_by_all (k := k) lost; rewrite ltxx => /(_ isT); apply: le_trans.
  by rewrite ler_add2l ler_opp2.
have b0 : 0 <= b by rewrite -balanced.
have g_b : g%:R <= b.
  have [|[j]] := set_0Vmem [set j | Num.sg (M j - (A p j)%:R) < Num.sg (M k - (A p k)%:R)].
    by move: gained => + none; rewrite none cards0 muln0 leqn0 => /eqP ->.
  rewrite inE !sg_off balanced sgr0 oppr0 oppr_lt0 sgr_gt0 => /someone_under[i ui].
  apply: (traded_by_some (j := i) (k := k) gained); rewrite ?ltxx //.
    by apply: contraTneq ui => ->; rewrite balanced ltxx.
  by rewrite -leNgt !sg_off balanced sgr0 oppr0 oppr_ge0 sgr_le0 ltW.
have l_b : l%:R <= b.
  have [|[j]] := set_0Vmem [set j | Num.sg (M k - (A p k)%:R) < Num.sg (M j - (A p j)%:R)].
    by move: lost => + none; rewrite none cards0 muln0 leqn0 => /eqP ->.
  rewrite inE !sg_off balanced sgr0 oppr0 oppr_gt0 sgr_lt0 => /someone_over[i oi].
  apply: (traded_by_some (j := i) (k := k) lost); rewrite ?ltxx //.
    by apply: contraTneq oi => ->; rewrite balanced ltxx.
  by rewrite -leNgt !sg_off balanced sgr0 oppr0 oppr_le0 sgr_ge0 ltW.
rewrite balanced add0r ler_subl_addr (le_trans g_b) ?ler_addl // andbT.
by rewrite ler_oppl opprB ler_subl_addr (le_trans l_b) // ler_addl.
Qed.

End UnequalTargets.

(* Both instances of delta. *)
Section Grids.
Variables (R : realFieldType) (T E K : nat) (scores : 'I_T -> 'I_E -> R) (u : R) (M : 'I_E -> R).
Hypotheses (KE : (K <= E)%N) (u0 : 0 < u) (total_M : \sum_k M k = (K * T)%:R).
Local Notation A := (load K scores).
Local Notation step := (sign_step K scores M u).
Local Notation m := (multiplicity scores (2%:R * u)).

Corollary any_targets_band p k : `|(A p k)%:R - M k| <= m%:R * (E%:R - 1) ->
  `|(A (step p) k)%:R - M k| <= m%:R * (E%:R - 1).
Proof.
by apply: (unequal_band KE u0 total_M (delta := 0)) => [|q j _|]; rewrite ?lexx ?ler01 ?subr0 ?normr_ge0.
Qed.

Corollary fraction_targets_band d (multiple : 'I_E -> int) p k : (0 < d)%N ->
  (forall k, M k = (multiple k)%:~R / d%:R) ->
  let b := m%:R * (E%:R - 1) - d%:R^-1 in `|(A p k)%:R - M k| <= b -> `|(A (step p) k)%:R - M k| <= b.
Proof.
move=> d0 ME; have dR : 0 < d%:R :> R by rewrite ltr0n.
apply: (unequal_band KE u0 total_M (delta := d%:R^-1)) => [|q j|//].
  by rewrite invr_ge0 ler0n invf_le1 // ler1n.
have -> : (A q j)%:R - M j = ((A q j)%:Z * d%:Z - multiple j)%:~R / d%:R :> R.
  by rewrite ME rmorphB rmorphM /= -!pmulrn; field; rewrite gt_eqF.
rewrite mulf_eq0 negb_or intr_eq0 => /andP[n0 _].
rewrite normrM normfV (gtr0_norm dR) -[leLHS]mul1r ler_pmul2r ?invr_gt0 //.
by rewrite -intr_norm ler1z -gtz0_ge1 normr_gt0.
Qed.

End Grids.
