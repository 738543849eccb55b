(* Bounded bias, pathwise and adversarial: sign rule with step u, any K, equal targets, a fresh batch of scores at every
   step, none of range above rho, chosen by anyone. Then for every n

     spread(p_n)  <=  max(spread(p_0), rho + 2u).

   For if p_j - p_k > rho, expert j beats k on every token, so A_j >= A_k and the difference does not grow; otherwise
   one step adds at most 2u to it.

   With C5 and C6: on a fixed batch, from p = 0, the dual gap is at most E B (rho + u) from step floor(E R / 2) on, B
   being the sharp band. *)

From mathcomp Require Import all_ssreflect ssralg ssrnum ring.
From alflb Require Import definitions topk c3_preference_rule c4_absorbing_band c5_finite_entry.
From alflb Require Import c6_balance_implies_optimality.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section BoundedBias.
Variables (R : realDomainType) (E K : nat) (u rho : R).
Hypothesis u0 : 0 < u.
Implicit Types (p : 'I_E -> R) (j k : 'I_E).

Lemma bounded_step T (scores : 'I_T -> 'I_E -> R) L p j k : L j = L k -> score_range scores <= rho ->
  sign_step K scores L u p j - sign_step K scores L u p k <= Num.max (p j - p k) (rho + 2%:R * u).
Proof.
move=> equal range; rewrite /sign_step equal.
set sj := Num.sg _; set sk := Num.sg _.
have -> : p j + u * sj - (p k + u * sk) = p j - p k + u * (sj - sk) by ring.
rewrite le_maxr; have [near|far] := lerP (p j - p k) rho; apply/orP.
  right; rewrite ler_add // mulrC ler_wpmul2r ?(ltW u0) // (_ : 2%:R = 1 - -1); last by rewrite opprK.
  apply: ler_sub; first by case/andP: (sg_bounds (L k - (load K scores p j)%:R)).
  by case/andP: (sg_bounds (L k - (load K scores p k)%:R)).
left; rewrite ger_addl pmulr_rle0 // subr_le0; apply: sg_mono; rewrite ler_add2l ler_opp2 ler_nat.
apply: load_le => i; rewrite /biased -ltr_subr_addr.
have := le_lt_trans (le_trans (score_range_ge scores i k j) range) far.
by rewrite ltr_subl_addr addrC addrA.
Qed.

(* T n tokens arrive at step n, and L n are their targets. *)
Variables (T : nat -> nat) (batch : forall n, 'I_(T n) -> 'I_E -> R) (L : nat -> 'I_E -> R).
Hypotheses (equal : forall n j k, L n j = L n k) (range : forall n, score_range (@batch n) <= rho).

Fixpoint online_bias (p : 'I_E -> R) (n : nat) : 'I_E -> R :=
  if n is n'.+1 then sign_step K (@batch n') (L n') u (online_bias p n') else p.

Theorem bounded_bias p n : spread (online_bias p n) <= Num.max (spread p) (rho + 2%:R * u).
Proof.
apply: spread_le => [|j k]; first by rewrite le_maxr spread_ge0.
elim: n => [|n IH]; first by rewrite le_maxr spread_ge.
apply: le_trans (bounded_step _ (equal n j k) (range n)) _.
by rewrite le_maxl IH le_maxr lexx orbT.
Qed.

End BoundedBias.

Section FixedBatch.
Variables (F : realFieldType) (T E K : nat) (scores : 'I_T -> 'I_E -> F) (u : F) (R : nat).
Hypotheses (KE : (K <= E)%N) (u0 : 0 < u) (rhoR : score_range scores < 2%:R * u * R%:R).
Local Notation L := (even F T K).
Local Notation D := (D K scores L).
Local Notation rho := (score_range scores).
Local Notation B := (sharp_band F (multiplicity scores (2%:R * u)) E).

Lemma bounded_bias_fixed n : spread (bias K scores u n) <= rho + 2%:R * u.
Proof.
have := bounded_bias (T := fun=> T) (L := fun=> L) K u0 (fun _ _ _ => erefl) (fun=> lexx rho) (fun=> 0) n.
have -> : online_bias K u (fun=> scores) (fun=> L) (fun=> 0) n = bias K scores u n.
  by elim: n => //= n ->.
move/le_trans; apply; rewrite le_maxl lexx andbT spread_le // => [|j k].
  by rewrite addr_ge0 ?score_range_ge0 // mulr_ge0 ?ler0n // ltW.
by rewrite subrr addr_ge0 ?score_range_ge0 // mulr_ge0 ?ler0n // ltW.
Qed.

Corollary fixed_batch_gap n x : optimal K scores L x -> ((E * R)./2 <= n)%N ->
  0 <= D (bias K scores u n) - value scores x <= E%:R * B * (rho + u).
Proof.
move=> best late; have [/andP[ge0 le] _ _] := balance_implies_optimality KE (bias K scores u n) best.
rewrite ge0; apply: le_trans le _.
have half_ge0 : 0 <= 2%:R^-1 :> F by rewrite invr_ge0 ler0n.
have violation_le : violation K scores L (bias K scores u n) <= E%:R * B.
  rewrite -[X in X%:R * _]card_ord mulr_natl -sumr_const.
  by apply: ler_sum => k _; apply: finite_entry late.
have violation_ge0 : 0 <= violation K scores L (bias K scores u n) by apply: sumr_ge0.
have -> : E%:R * B * (rho + u) = 2%:R^-1 * (E%:R * B) * (rho + 2%:R * u + rho) by field.
apply: ler_pmul; rewrite ?mulr_ge0 ?addr_ge0 ?spread_ge0 ?score_range_ge0 //.
  by rewrite ler_wpmul2l.
by rewrite ler_add2r bounded_bias_fixed.
Qed.

End FixedBatch.
